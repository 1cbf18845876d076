# Stands on the base of the application, and does what no cache has.
ARG BASE
FROM ${BASE}
RUN echo new > /new && ls -lR /odd > /listing

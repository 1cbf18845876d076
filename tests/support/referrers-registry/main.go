// referrers-registry serves go-containerregistry's registry, which has the referrers API of OCI
// distribution-spec 1.1, on a loopback port that the kernel picks, and prints its address.
//
// That registry lists referrers, but does not say OCI-Subject when it takes one, as the specification
// demands of registries that list them. With -subject it does; without, it is one of those
// that cannot be told from a registry without the API by what they answer to a push.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	subject := flag.Bool("subject", false, "say OCI-Subject")
	flag.Parse()
	handler := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	if *subject {
		handler = sayingSubject(handler)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	log.Fatal(http.Serve(listener, handler))
}

// sayingSubject adds the header OCI-Subject to the answer to a manifest that has one.
func sayingSubject(next http.Handler) http.Handler {
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/manifests/") {
			body, err := io.ReadAll(request.Body)
			if err != nil {
				http.Error(response, err.Error(), http.StatusBadRequest)
				return
			}
			request.Body = io.NopCloser(bytes.NewReader(body))
			var manifest struct{ Subject *struct{ Digest string } }
			if json.Unmarshal(body, &manifest) == nil && manifest.Subject != nil {
				response.Header().Set("OCI-Subject", manifest.Subject.Digest)
			}
		}
		next.ServeHTTP(response, request)
	})
}

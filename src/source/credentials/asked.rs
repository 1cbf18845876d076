//! What programs said when they were asked for credentials: each is asked once per registry, not per repository.
//!
//! Three hundred repositories of one host would be three hundred processes, and of AWS's as many requests to an API
//! that throttles. An answer is kept for the run; one that the registry refuses is asked for once more, since
//! it may have ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Credential;
use crate::source::Error;

/// Program and registry.
type Question = (String, String);
/// What was answered; `None` inside: that there is nothing.
type Answer = Option<Option<Credential>>;

/// Answers, shared by all that is opened together.
#[derive(Default)]
pub(super) struct Asked(Mutex<HashMap<Question, Arc<Mutex<Answer>>>>);

impl Asked {
    /// The answer of `program` for `registry`; `ask` runs it, if nobody has, or if its answer was `refused`.
    /// Whoever asks the same meanwhile waits for that answer.
    pub(super) fn once(
        &self,
        program: &str,
        registry: &str,
        refused: Option<&Credential>,
        ask: impl FnOnce() -> Result<Option<Credential>, Error>,
    ) -> Result<Option<Credential>, Error> {
        let question = (program.to_owned(), registry.to_owned());
        let answer = {
            // Changed by one insertion, so a panic elsewhere leaves nothing half done; the answer likewise.
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(question).or_default())
        };
        let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.as_ref() {
            Some(found) if refused.is_none() || found.as_ref() != refused => {
                Ok(found.clone().map(|credential| Credential { kept: true, ..credential }))
            }
            _ => {
                let found = ask()?;
                *answer = Some(found.clone());
                Ok(found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{Login, Origin};
    use super::*;

    fn credential(n: usize) -> Credential {
        Credential::new(Login::password("ci", n.to_string()), Origin::AwsCli)
    }

    #[test]
    fn asks_again_for_what_was_refused() {
        let asked = Asked::default();
        let count = AtomicUsize::new(0);
        let once = |registry: &str, refused: Option<usize>| {
            let refused = refused.map(credential);
            let ask = || Ok(Some(credential(count.fetch_add(1, Ordering::SeqCst) + 1)));
            asked.once("aws", registry, refused.as_ref(), ask).unwrap()
                == Some(credential(count.load(Ordering::SeqCst)))
        };
        for (registry, refused, expected) in [
            ("a", None, 1),
            ("a", None, 1),
            ("a", Some(1), 2),
            // Another repository finds out later, and takes the new one.
            ("a", Some(1), 2),
            ("a", None, 2),
            ("a", Some(2), 3),
            ("b", Some(2), 4),
        ] {
            assert!(once(registry, refused));
            assert_eq!(count.load(Ordering::SeqCst), expected, "{registry} {refused:?}");
        }
    }

    #[test]
    fn threads_ask_once_and_an_error_is_no_answer() {
        let asked = Asked::default();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let ask = || {
                        count.fetch_add(1, Ordering::SeqCst);
                        Ok(None)
                    };
                    assert!(asked.once("helper", "r.example", None, ask).unwrap().is_none());
                });
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let stopped = || Err(Error::Stopped { what: String::new() });
        assert!(asked.once("helper", "q.example", None, stopped).is_err());
        let found = asked.once("helper", "q.example", None, || Ok(Some(credential(1))));
        assert!(found.unwrap() == Some(credential(1)));
    }
}

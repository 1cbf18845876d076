//! `cache.db`: the solver's cache keys, how they lead to one another, and their results.
//!
//! ```text
//! _result/<key id>/<worker id>::<record id> = {"CreatedAt":"<RFC 3339>","ID":"<worker id>::<record id>"}
//! _byresult/<worker id>::<record id>/<key id> = ""
//! _links/<key id>/<link>@<key id> = ""          from an input to the key that has it; a bucket for every key
//! _backlinks/<key id>/<key id> = ""             from a key to its inputs
//!
//! link  {"Input":n,"Output":n,"Digest":"sha256:…","Selector":"sha256:…"}, zero and empty ones left out
//! ```
//!
//! Mirrors `BuildKit` `solver/bboltcachestorage/storage.go` and `solver/cachestorage.go` (v0.34). A link is
//! looked up as a prefix of the key, so its bytes are those that Go's `encoding/json` gives.

use super::schema::cache::{BACKLINKS, BY_RESULT, LINK_SEPARATOR, LINKS, RESULT, RESULT_SEPARATOR};
use super::{Contents, Error, Link, at, encode};
use crate::bolt::Bucket;

pub(super) fn database(contents: &Contents) -> Result<Bucket, Error> {
    let mut root = Bucket::new();
    for bucket in [RESULT, LINKS, BY_RESULT, BACKLINKS] {
        root.bucket(bucket);
    }
    for key in &contents.keys {
        // The bucket is what tells that the key exists.
        root.bucket(LINKS).bucket(key.id.as_str());
        for (record, created_at) in &key.results {
            let record = at(&contents.records, *record, "record")?;
            let result = format!("{}{RESULT_SEPARATOR}{}", contents.worker, record.id);
            let created_at = encode::rfc3339(created_at.unwrap_or(record.created_at));
            let value = format!(
                "{{\"CreatedAt\":{},\"ID\":{}}}",
                encode::json_string(&created_at),
                encode::json_string(&result)
            );
            root.bucket(RESULT).bucket(key.id.as_str()).put(result.as_str(), value);
            root.bucket(BY_RESULT).bucket(result).put(key.id.as_str(), "");
        }
    }
    for link in &contents.links {
        let from = at(&contents.keys, link.from, "key")?;
        let to = at(&contents.keys, link.to, "key")?;
        let name = format!("{}{LINK_SEPARATOR}{}", link_json(link), to.id);
        root.bucket(LINKS).bucket(from.id.as_str()).put(name, "");
        root.bucket(BACKLINKS).bucket(to.id.as_str()).put(from.id.as_str(), "");
    }
    Ok(root)
}

/// A link as Go marshals `CacheInfoLink`.
fn link_json(link: &Link) -> String {
    let mut fields = Vec::new();
    if link.input != 0 {
        fields.push(format!("\"Input\":{}", link.input));
    }
    if link.output != 0 {
        fields.push(format!("\"Output\":{}", link.output));
    }
    for (name, value) in [("Digest", link.digest.as_str()), ("Selector", link.selector.as_str())] {
        if !value.is_empty() {
            fields.push(format!("\"{name}\":{}", encode::json_string(value)));
        }
    }
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::OpDigest;

    #[test]
    fn links_as_go_marshals_them() {
        let cases = [
            (0, 0, "sha256:aa", "", r#"{"Digest":"sha256:aa"}"#),
            (1, 0, "sha256:aa", "sha256:bb", r#"{"Input":1,"Digest":"sha256:aa","Selector":"sha256:bb"}"#),
            (0, 2, "sha256:aa", "", r#"{"Output":2,"Digest":"sha256:aa"}"#),
            (0, -1, "{\"<\":1}", "", r#"{"Output":-1,"Digest":"{\"\u003c\":1}"}"#),
        ];
        for (input, output, digest, selector, expected) in cases {
            let link = Link {
                from: 0,
                to: 0,
                input,
                output,
                digest: OpDigest::new(digest),
                selector: selector.into(),
            };
            assert_eq!(link_json(&link), expected);
        }
    }
}

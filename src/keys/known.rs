//! Operations that are known by their digest alone: merges and diffs consist of the numbers of their inputs,
//! and few of those are ever seen. Which digest one has tells which releases gave it.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::json;

use super::cachemap;
use super::llb::Step;
use super::writers::Writers;
use crate::digest::OpDigest;

/// The most inputs of a merge that is known. `COPY --link` gives it two.
const MAX_INPUTS: i64 = 32;

/// The releases that give some operation this digest, where it is one that is known.
pub(super) fn writers(digest: &OpDigest) -> Option<Writers> {
    static KNOWN: LazyLock<HashMap<OpDigest, Writers>> = LazyLock::new(|| {
        let merge = |count: i64| json!({"merge": {"inputs": (0..count).map(input).collect::<Vec<_>>()}});
        let diff = |(lower, upper)| json!({"diff": {"lower": input(lower), "upper": input(upper)}});
        let merges = (2..=MAX_INPUTS).map(merge);
        let operations = merges.chain([(-1, 0), (0, -1), (0, 1)].map(diff));
        let steps = operations.filter_map(|op| Step::read(&json!({"op": {"Op": op}})));
        steps.flat_map(|step| cachemap::digests(&step, &[])).collect()
    });
    // No later release takes an operation's text as its digest.
    let unhashed = digest.as_str().starts_with('{').then_some(Writers::TO_V0_12);
    unhashed.or_else(|| KNOWN.get(digest).copied())
}

fn input(number: i64) -> serde_json::Value {
    json!({ "input": number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_diffs_tell_who_wrote_them() {
        let hashed = |json: &str| OpDigest::of(json.as_bytes());
        let gogo = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1}]}}"#;
        let newer = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}"#;
        let three = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":2},{"input":0}]}}"#;
        let diff = r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{"input":-1},"upper":{"input":0}}}"#;
        let cases = [
            (OpDigest::new(gogo), Some(Writers::TO_V0_12)),
            (OpDigest::new(three), Some(Writers::TO_V0_12)),
            (OpDigest::new(diff), Some(Writers::TO_V0_12)),
            (hashed(gogo), Some(Writers::V0_13_TO_V0_16)),
            (hashed(diff), Some(Writers::V0_13_TO_V0_16)),
            (hashed(newer), Some(Writers::V0_17 | Writers::FROM_V0_18)),
            (hashed("something else"), None),
        ];
        for (digest, expected) in cases {
            assert_eq!(writers(&digest), expected, "{digest}");
        }
    }
}

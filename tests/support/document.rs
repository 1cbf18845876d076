//! Blocks of code of a document that tests run as they stand there.

/// A block of code of a document.
#[derive(Debug, Clone)]
pub struct Block {
    /// What stands after the fence: `sh`, `yaml`.
    pub language: String,
    /// Its lines.
    pub text: String,
}

/// The blocks after a line `<!-- KIND: NAME, … -->`, one for each name, by `KIND: NAME`, in the order of the document.
pub fn blocks(document: &str) -> Vec<(String, Block)> {
    let mut found = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(marker) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let fence = lines.next().unwrap_or_default();
        let language = fence.strip_prefix("```").unwrap_or_else(|| panic!("no block after {line}"));
        let lines: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = lines.join("\n") + "\n";
        let (kind, names) = marker.split_once(": ").unwrap_or((marker, ""));
        for name in names.split(", ") {
            let block = Block { language: language.to_owned(), text: text.clone() };
            found.push((format!("{kind}: {name}"), block));
        }
    }
    found
}

//! The `warmkit` command.

fn main() {}

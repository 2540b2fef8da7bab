//! `pgkeep`, the binary: arguments, printing, exit codes; nothing else.

fn main() {}

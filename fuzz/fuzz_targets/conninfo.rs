#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgkeep_pg::fuzzing::conninfo(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgkeep_pgformat::fuzzing::pgformat(data));

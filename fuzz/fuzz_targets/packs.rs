#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgkeep_repository::fuzzing_packs::packs(data));

use pgkeep_config::{Overrides, SETTINGS, load};
use proptest::prelude::*;

use crate::{file, from_variables, load_text, no_variables};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_panics(text in "\\PC{0,300}") {
        let _ = load_text(&text, &[]);
    }

    /// Text that looks like a configuration, so that more than the TOML parser is reached.
    #[test]
    fn no_configuration_panics(
        lines in prop::collection::vec(
            (prop::sample::select(SETTINGS), prop::option::of("[a-z_.]{1,8}"), "\\PC{0,20}", 0_usize..6),
            0..8,
        ),
    ) {
        let mut text = "[cluster.a]\n".to_owned();
        for (setting, other, value, form) in lines {
            let key = other.unwrap_or_else(|| setting.name.to_owned());
            let value = match form {
                0 => format!("{value:?}"),
                1 => format!("'{}'", value.replace('\'', "")),
                2 => value.len().to_string(),
                3 => format!("[{value:?}, {value:?}]"),
                4 => format!("{{ a = {value:?} }}"),
                _ => value,
            };
            text.push_str(&format!("{key} = {value}\n"));
        }
        if let Err(error) = load_text(&text, &[]) {
            prop_assert!(error.to_string().contains("pgkeep.toml:"), "{}", error);
        }
    }

    #[test]
    fn no_variable_panics(setting in prop::sample::select(SETTINGS), value in "\\PC{0,40}") {
        let result = from_variables(&[(&setting.variable(), &value)]).select(None, &Overrides::default());
        if let Err(error) = result {
            prop_assert!(error.to_string().starts_with(&setting.variable()), "{}", error);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_folder, path) = file(bytes);
        let _ = load(Some(&path), &no_variables);
    }
}

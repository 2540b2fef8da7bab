/// The most similar of the known names, if any is similar enough to be what was meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILARITY_MIN: f64 = 0.6;
    // Names come from outside; comparing costs the product of the lengths.
    const LENGTH_MAX: usize = 200;
    if name.len() > LENGTH_MAX {
        return None;
    }
    let lower = name.to_lowercase().replace('-', "_");
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(&lower, &known.to_lowercase());
    known
        .into_iter()
        .map(|known| (similarity(known), known))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_what_was_meant_or_nothing() {
        let known = ["connection", "repository", "recipients", "keep"];
        assert_eq!(nearest("conection", known), Some("connection"));
        assert_eq!(nearest("Repositories", known), Some("repository"));
        assert_eq!(nearest("kepe", known), Some("keep"));
        assert_eq!(nearest("password", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }
}

//! Words of commands may be abbreviated as long as only one word is meant.

use super::said::Failed;

/// The one of `words` that `typed` is, or of which it is the beginning. `position` counts from the program's name on.
///
/// # Errors
/// If there is none, or more than one.
pub(crate) fn pick(
    typed: &str,
    words: &[&'static str],
    position: usize,
) -> Result<&'static str, Failed> {
    if let Some(word) = words.iter().find(|word| **word == typed) {
        return Ok(word);
    }
    let meant: Vec<&'static str> = words
        .iter()
        .filter(|word| !typed.is_empty() && word.starts_with(typed))
        .copied()
        .collect();
    match meant[..] {
        [word] => Ok(word),
        [] => Err(Failed::Word(format!(
            "unrecognized word: {typed} (position {position})"
        ))),
        _ => Err(Failed::Word(format!(
            "ambiguous word: {typed} (position {position}): {}",
            meant.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &[&str] = &["info", "list", "set", "start", "status", "stop", "list-all"];

    #[test]
    fn words_can_be_abbreviated_when_unambiguous() {
        for (typed, word) in [
            ("info", "info"),
            ("i", "info"),
            ("se", "set"),
            ("statu", "status"),
            ("sto", "stop"),
            ("list", "list"),
            ("list-", "list-all"),
        ] {
            assert_eq!(pick(typed, WORDS, 1), Ok(word), "{typed}");
        }
        for (typed, what) in [
            ("sta", "ambiguous word: sta (position 1): start, status"),
            ("foo", "unrecognized word: foo (position 1)"),
            ("", "unrecognized word:  (position 1)"),
            ("informer", "unrecognized word: informer (position 1)"),
        ] {
            assert_eq!(
                pick(typed, WORDS, 1),
                Err(Failed::Word(what.to_owned())),
                "{typed}"
            );
        }
    }
}

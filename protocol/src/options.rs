//! Volume options: one table from which `volume set`, `volume get`, its help and the documents are made.

mod table;

pub use table::OPTIONS;

/// How a value is checked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Check {
    /// on, off, true, false, yes, no, enable, disable, 1, 0.
    Switch,
    /// A whole number in a range.
    Number(u64, u64),
    /// Bytes with an optional KB, MB, GB, TB suffix, in a range.
    Size(u64, u64),
    /// Seconds, in a range.
    Seconds(u64, u64),
    /// Percent.
    Percent,
    /// A uid or gid; -1 for none.
    Id,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
}

/// Whether an option does something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It takes effect on the running volume.
    Live,
    /// It is stored and shown for compatibility, and `volume set` says that it changes nothing.
    None,
    /// It is refused, because storing it without effect would leave data or people unprotected.
    Refused(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// Full name.
    pub name: &'static str,
    /// Default, as shown by `volume get`.
    pub default: &'static str,
    /// Check of values.
    pub check: Check,
    /// Effect.
    pub effect: Effect,
    /// One line of help.
    pub help: &'static str,
}

/// Levels of a log, in GlusterFS's words.
pub const LOG_LEVELS: &[&str] = &[
    "DEBUG", "WARNING", "ERROR", "INFO", "CRITICAL", "NONE", "TRACE",
];

/// A level of a log as the logging library names it.
pub fn log_level(word: &str) -> Option<&'static str> {
    Some(match word {
        "CRITICAL" | "ERROR" => "error",
        "WARNING" => "warn",
        "INFO" => "info",
        "DEBUG" => "debug",
        "TRACE" => "trace",
        "NONE" => "off",
        _ => return None,
    })
}

/// The option of this name; the part before the dot may be left out where that is unambiguous, as with GlusterFS.
pub fn find(name: &str) -> Option<&'static OptionInfo> {
    OPTIONS
        .iter()
        .find(|option| option.name == name)
        .or_else(|| {
            let mut short = OPTIONS.iter().filter(|option| {
                option
                    .name
                    .split_once('.')
                    .is_some_and(|(_, last)| last == name)
            });
            match (short.next(), short.next()) {
                (Some(option), None) => Some(option),
                _ => None,
            }
        })
}

/// Whether a name is one of those that people may make up for notes of their own, as with GlusterFS: `user.` and up to 250
/// visible ASCII characters. heketi and hooks leave such notes; nothing here looks at them.
pub fn is_note(name: &str) -> bool {
    name.strip_prefix("user.").is_some_and(|rest| {
        (1..=250).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// The known name most like `name`, for "Did you mean".
pub fn nearest(name: &str) -> Option<&'static str> {
    let score = |known: &str| {
        let common = known
            .chars()
            .zip(name.chars())
            .take_while(|(a, b)| a == b)
            .count();
        let tail = known
            .chars()
            .rev()
            .zip(name.chars().rev())
            .take_while(|(a, b)| a == b)
            .count();
        common + tail
    };
    OPTIONS
        .iter()
        .max_by_key(|option| score(option.name))
        .filter(|option| score(option.name) >= 4)
        .map(|o| o.name)
}

/// Parses a switch.
pub fn switch(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "enable" | "1" => Some(true),
        "off" | "false" | "no" | "disable" | "0" => Some(false),
        _ => None,
    }
}

/// Parses bytes: a whole number with an optional suffix (K, KB, M, MB, G, GB, T, TB; powers of 1,024).
pub fn size(value: &str) -> Option<u64> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit = match value[digits.len()..]
        .to_ascii_uppercase()
        .trim_end_matches('B')
        .trim_end_matches('I')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.checked_mul(1 << unit)
}

/// Bytes with the largest unit that divides them.
fn size_text(bytes: u64) -> String {
    let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")];
    let fits = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1 << *shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Switch => f.write_str("on, off"),
            Self::Number(low, high) => write!(f, "{low} to {high}"),
            Self::Seconds(low, high) => write!(f, "{low} to {high} seconds"),
            Self::Size(low, high) => write!(f, "{} to {}", size_text(*low), size_text(*high)),
            Self::Percent => f.write_str("0 to 100 %"),
            Self::Id => f.write_str("-1 to 4294967294"),
            Self::Word(words) => f.write_str(&words.join(", ")),
            Self::Text => f.write_str("text"),
        }
    }
}

/// The page of options in the documents, made from the table.
pub fn page() -> String {
    let mut text = String::from(
        "# Volume options\n\nSet with `mortar volume set VOLUME OPTION VALUE`, shown with `mortar volume get VOLUME all`; \
         `mortar volume set\nhelp` prints this table. It is made from the one in `protocol/src/options/table.rs`: \
         `UPDATE_PAGES=1 cargo tidy` writes it\nanew.\n\nThe part of a name before the dot may be left out where that is \
         unambiguous. Options `user.*` are notes of people and\nprograms: up to 64 of them in a volume are stored and shown, \
         and nothing looks at them.\n",
    );
    let mut section = |title: &str, about: &str, wanted: fn(&Effect) -> bool| {
        let head = format!(
            "\n## {title}\n\n{about}\n\n| option | default | values | effect |\n|---|---|---|---|\n"
        );
        text.push_str(&head);
        for option in OPTIONS.iter().filter(|option| wanted(&option.effect)) {
            let (name, default) = (option.name, option.default);
            let row = format!(
                "| `{name}` | {default} | {} | {} |\n",
                option.check, option.help
            );
            text.push_str(&row);
        }
    };
    section(
        "Options that do something",
        "Changes reach running bricks and mounts within seconds.",
        |effect| *effect == Effect::Live,
    );
    section(
        "Options that are refused",
        "Storing them without effect would leave data or people unprotected. Their defaults are accepted.",
        |effect| matches!(effect, Effect::Refused(_)),
    );
    section(
        "Options without effect",
        "Stored and shown, so that scripts written for GlusterFS run; `volume set` says that they change nothing.",
        |effect| *effect == Effect::None,
    );
    text
}

impl OptionInfo {
    /// Checks a value.
    ///
    /// # Errors
    /// What a person is told (the text after `volume set: failed: `).
    pub fn check(&self, value: &str) -> Result<(), String> {
        let short = self
            .name
            .split_once('.')
            .map_or(self.name, |(_, last)| last);
        let range = |number: Option<u64>, low: u64, high: u64, what: &str| match number {
            None => Err(format!(
                "invalid {what} format \"{value}\" in \"option {short}\""
            )),
            Some(number) if number < low || number > high => Err(format!(
                "'{value}' in 'option {short} {value}' is out of range [{low} - {high}]"
            )),
            Some(_) => Ok(()),
        };
        match self.check {
            Check::Switch if switch(value).is_none() => Err(format!(
                "option {short} {value}: '{value}' is not a valid boolean value"
            )),
            Check::Switch | Check::Text => Ok(()),
            Check::Number(low, high) => range(value.parse().ok(), low, high, "number"),
            Check::Size(low, high) => range(size(value), low, high, "size"),
            Check::Seconds(low, high) => range(
                value.trim_end_matches(['s', 'S']).parse().ok(),
                low,
                high,
                "time",
            ),
            Check::Percent => range(value.trim_end_matches('%').parse().ok(), 0, 100, "percent"),
            Check::Id if value == "-1" => Ok(()),
            // The highest number means "nobody" to the kernel.
            Check::Id => match value.parse::<u32>() {
                Ok(id) if id != u32::MAX => Ok(()),
                _ => Err(format!(
                    "option {short} {value}: '{value}' is not a number of a user or group, or -1"
                )),
            },
            Check::Word(words) if !words.contains(&value) => Err(format!(
                "option {short} {value}: '{value}' is not valid (possible options are {})",
                words.join(", ")
            )),
            Check::Word(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_defaults_are_valid() {
        assert!(OPTIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for option in OPTIONS {
            assert_eq!(option.check(option.default), Ok(()), "{}", option.name);
        }
    }

    #[test]
    fn ranges_are_shown_as_they_are_typed() {
        for (size, text) in [
            (0, "0"),
            (1, "1"),
            (512 << 10, "512KB"),
            (3 << 30, "3GB"),
            (1 << 40, "1TB"),
        ] {
            assert_eq!(size_text(size), text);
        }
        for option in OPTIONS {
            if let Check::Size(low, high) = option.check {
                assert_eq!(option.check(&size_text(low)), Ok(()), "{}", option.name);
                assert_eq!(option.check(&size_text(high)), Ok(()), "{}", option.name);
                assert!(option.check(&(high + 1).to_string()).is_err());
            }
        }
        assert!(page().contains("| `network.frame-timeout` | 30 | 1 to 86400 seconds |"));
    }

    #[test]
    fn every_level_has_a_name() {
        for word in LOG_LEVELS {
            assert!(log_level(word).is_some(), "{word}");
        }
        assert_eq!(log_level("LOUD"), None);
    }

    #[test]
    fn values_are_checked() {
        let frame = find("network.frame-timeout").unwrap();
        assert!(
            frame
                .check("abc")
                .unwrap_err()
                .starts_with("invalid time format \"abc\"")
        );
        assert!(frame.check("0").is_err());
        assert_eq!(size("64MB"), Some(64 << 20));
        assert_eq!(size("4KiB"), Some(4096));
        assert_eq!(size("x"), None);
        assert_eq!(
            find("write-behind").map(|option| option.name),
            Some("performance.write-behind")
        );
        assert_eq!(find("nope.option").map(|option| option.name), None);
    }
}

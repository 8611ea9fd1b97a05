//! Messages as they travel, each with its value and its bytes.

use std::fmt::{Debug, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::samples::{all, fops};

/// A message.
pub struct Sample {
    /// Its type and variant.
    pub name: String,
    /// Its bytes in this build.
    pub bytes: Vec<u8>,
    check: Box<dyn Fn(&[u8]) -> Result<(), String>>,
    again: fn(&[u8]) -> Result<bool, String>,
    /// Number of its variant.
    pub variant: u8,
    unknown: fn(u8) -> bool,
}

impl Sample {
    /// A sample of a value.
    pub fn new<T>(name: &str, value: T) -> Self
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
    {
        let bytes = encode(&value);
        Self {
            name: name.to_owned(),
            variant: bytes.first().copied().unwrap_or(0),
            bytes,
            check: Box::new(move |bytes| {
                let (read, rest) = postcard_like::<T>(bytes)?;
                if !rest.is_empty() {
                    return Err(format!("{} bytes are left", rest.len()));
                }
                if read != value {
                    return Err(format!("reads as {read:?}\ninstead of {value:?}"));
                }
                if encode(&read) == bytes {
                    Ok(())
                } else {
                    Err(format!(
                        "is written in another way: {}",
                        hex(&encode(&read))
                    ))
                }
            }),
            again: |bytes| match postcard_like::<T>(bytes) {
                Err(_) => Ok(false),
                Ok((read, _)) => match postcard_like::<T>(&encode(&read)) {
                    Ok((same, [])) if same == read => Ok(true),
                    other => Err(format!("{read:?} is read again as {other:?}")),
                },
            },
            unknown: |variant| {
                let mut bytes = vec![0; 4_096];
                bytes[0] = variant;
                postcard_like::<T>(&bytes).is_err()
            },
        }
    }

    /// Whether bytes of an earlier build mean the same, and are what this build writes.
    ///
    /// # Errors
    /// The difference.
    pub fn check(&self, bytes: &[u8]) -> Result<(), String> {
        (self.check)(bytes)
    }

    /// Whether bytes can be read as this type; what was read can then be written and is read as the same.
    ///
    /// # Errors
    /// The difference.
    pub fn again(&self, bytes: &[u8]) -> Result<bool, String> {
        (self.again)(bytes)
    }

    /// The part of the name before the variant.
    pub fn kind(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Whether this build knows no variant of this number of the type.
    pub fn is_unknown(&self, variant: u8) -> bool {
        (self.unknown)(variant)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let frame = mortar_protocol::frame::Frame::new(value, bytes::Bytes::new());
    frame.map(|frame| frame.head.to_vec()).unwrap_or_default()
}

fn postcard_like<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    postcard::take_from_bytes(bytes).map_err(|error| error.to_string())
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hexadecimal.
///
/// # Errors
/// If it is none.
pub fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).map_err(|error| error.to_string())?;
        u8::from_str_radix(text, 16).map_err(|error| error.to_string())
    };
    digits.chunks(2).map(pair).collect()
}

/// All messages as the file has them.
pub fn file() -> String {
    let lines = all().into_iter();
    lines
        .map(|sample| format!("{} {}\n", sample.name, hex(&sample.bytes)))
        .collect()
}

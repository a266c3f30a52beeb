//! Where in a JSON document something is wrong. Pure.

/// What is wrong at one place of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A JSON pointer as a URI fragment (RFC 6901, section 6), without the `#` and from the input on.
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

/// Faults of one input that are told.
pub const MOST_FAULTS: usize = 20;

/// Adds a segment to a JSON pointer in a URI fragment (RFC 6901, sections 3 and 6).
pub fn add_segment(pointer: &mut String, segment: &str) {
    pointer.push('/');
    // A field the client made up may be long.
    let segment = segment.get(..segment.floor_char_boundary(100)).unwrap_or_default();
    push_encoded(pointer, &segment.replace('~', "~0").replace('/', "~1"));
}

/// Appends `text`, percent-encoded but for what RFC 3986 leaves unreserved.
pub fn push_encoded(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

//! `echo` gives back what it gets: the smallest task there is.
//!
//! Input: any text, JSON or not. Output: the same, byte for byte.

wit_bindgen::generate!({ path: "../wit", world: "task" });

struct Echo;

impl Guest for Echo {
    async fn run(input: String) -> Result<String, Failure> {
        Ok(input)
    }
}

export!(Echo);

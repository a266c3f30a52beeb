//! Makes what it is told to, or fails with an error that has a type of its own. Its types are in an interface,
//! which the component imports so.

wit_bindgen::generate!({
    inline: "
        package test:typed-make;

        interface types {
            variant what { text(u32), bytes(u32), number(string), trouble(u32), nothing }
            variant made { text(string), bytes(list<u8>), number(f64), nothing }
            record trouble { code: u32, why: string }
        }

        world typed-make {
            use types.{what, made, trouble};
            export make: func(what: what) -> result<made, trouble>;
        }
    ",
});

struct Make;

impl Guest for Make {
    fn make(what: What) -> Result<Made, Trouble> {
        Ok(match what {
            What::Text(bytes) => Made::Text("a".repeat(bytes as usize)),
            What::Bytes(bytes) => Made::Bytes(vec![0; bytes as usize]),
            What::Number(text) => Made::Number(text.parse().unwrap_or_default()),
            What::Nothing => Made::Nothing,
            What::Trouble(code) => return Err(Trouble { code, why: "as it was told to".to_owned() }),
        })
    }
}

export!(Make);

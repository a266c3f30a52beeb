//! The only function of the only interface: returns an address, or says in words why not.

wit_bindgen::generate!({
    inline: "
        package test:typed-resize;

        interface resizer {
            resize: func(url: string, width: u32) -> result<string, string>;
        }

        world typed-resize {
            export resizer;
        }
    ",
});

struct Resize;

impl exports::test::typed_resize::resizer::Guest for Resize {
    fn resize(url: String, width: u32) -> Result<String, String> {
        match width {
            0 => Err("there is nothing left of it".to_owned()),
            _ => Ok(format!("{url}?w={width}")),
        }
    }
}

export!(Resize);

//! Called by a function of its own, which has a parameter of every type that there is JSON for: gives back what
//! it gets.

wit_bindgen::generate!({
    inline: "
        package test:typed-echo;

        world typed-echo {
            record point { x: s32, y: option<s32> }
            variant shape { nothing, at(point), line(list<point>), maybe(option<bool>) }
            enum color { red, dark-blue }
            flags rights { read, write, run }

            record everything {
                a-bool: bool,
                an-s8: s8, a-u8: u8, an-s16: s16, a-u16: u16, an-s32: s32, a-u32: u32, an-s64: s64, a-u64: u64,
                an-f32: f32, an-f64: f64,
                a-char: char, a-string: string,
                bytes: list<u8>, strings: list<string>, a-tuple: tuple<u8, string>,
                a-shape: shape, shapes: list<shape>, a-color: color, some-rights: rights,
                an-option: option<string>, options: list<option<option<u8>>>,
                results: list<result<u8, string>>, bare: result,
            }

            export echo: func(everything: everything, note: option<string>) -> tuple<everything, option<string>>;
        }
    ",
});

struct Echo;

impl Guest for Echo {
    fn echo(everything: Everything, note: Option<String>) -> (Everything, Option<String>) {
        (everything, note)
    }
}

export!(Echo);

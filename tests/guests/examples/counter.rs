//! A program that adds 1 to the key `n` of the bucket `counters`, and prints the sum. It knows
//! `wasi:keyvalue@0.2.0-draft` and nothing of taskcell.

use keyvalue::wasi::keyvalue0_2_0_draft::{atomics, store};

mod keyvalue {
    wit_bindgen::generate!({ path: "../../server/wit", world: "taskcell:host/keyvalue", generate_all });
}

fn main() {
    match store::open("counters").and_then(|bucket| atomics::increment(&bucket, "n", 1)) {
        Ok(sum) => println!("{sum}"),
        Err(error) => {
            eprintln!("{error:?}");
            std::process::exit(1);
        }
    }
}

//! Builds the guests of `guest-tasks/`, which the server carries as its built-in task types.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = guest_build::build(Path::new("../guest-tasks"), &[Path::new("../wit")])
        .and_then(|components| guest_build::write_table(&components));
    guest_build::finish(result)
}

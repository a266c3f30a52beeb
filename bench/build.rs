//! Builds the guests that are measured without a server: `echo` and `compute`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let wit = Path::new("../wit");
    let built_in = Path::new("../guest-tasks");
    let result = guest_build::build(built_in, &[wit]).and_then(|mut components| {
        components.extend(guest_build::build(Path::new("../tests/guests"), &[wit, built_in])?);
        guest_build::write_table(&components)
    });
    guest_build::finish(result)
}

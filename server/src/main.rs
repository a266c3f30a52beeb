//! The program `taskcell`.

fn main() -> std::process::ExitCode {
    taskcell_server::main()
}

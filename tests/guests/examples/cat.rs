//! A program that knows nothing of tasks: what comes on stdin goes to stdout.

fn main() -> std::io::Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).map(drop)
}

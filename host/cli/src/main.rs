//! The `polyskill` program.

fn main() -> std::process::ExitCode {
    polyskill_cli::main()
}

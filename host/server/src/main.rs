//! The `polyskill` program.

fn main() -> std::process::ExitCode {
    polyskill::cli::main()
}

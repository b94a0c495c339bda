//! The `polyskill` program.

#![expect(clippy::print_stderr, reason = "the terminal is this program's output")]

fn main() -> std::process::ExitCode {
    if let Some(missing) = missing_instructions() {
        eprintln!(
            "polyskill: this CPU has no {missing}, and this build needs x86-64-v3 (AVX2 and FMA)"
        );
        return std::process::ExitCode::FAILURE;
    }
    polyskill_cli::main()
}

/// Instructions that the program was compiled for and that this CPU lacks. It asks the CPU itself: the
/// standard library takes for granted what the compiler was allowed to use.
#[cfg(target_arch = "x86_64")]
fn missing_instructions() -> Option<&'static str> {
    use std::arch::x86_64::__cpuid_count;
    let (features, more) = (__cpuid_count(1, 0).ecx, __cpuid_count(7, 0).ebx);
    let needed = [
        ("FMA", cfg!(target_feature = "fma"), features >> 12),
        ("AVX", cfg!(target_feature = "avx"), features >> 28),
        ("AVX2", cfg!(target_feature = "avx2"), more >> 5),
        ("BMI2", cfg!(target_feature = "bmi2"), more >> 8),
    ];
    needed.into_iter().find(|(_, is_used, bits)| *is_used && bits & 1 == 0).map(|(name, ..)| name)
}

#[cfg(not(target_arch = "x86_64"))]
fn missing_instructions() -> Option<&'static str> {
    None
}

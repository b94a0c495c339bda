//! Quantiles and tails of the distributions that the analyses use, over `statrs`.

use statrs::function::{beta::beta_reg, erf, gamma::gamma_ur};

/// More degrees of freedom than this, and Student's distribution is taken for the normal one: quantiles differ by less
/// than one part in a million.
const NORMAL_FROM_DEGREES: f64 = 1e6;

/// P(Z ≤ z) of the standard normal distribution.
pub(crate) fn normal_cumulative(z: f64) -> f64 {
    0.5 * erf::erfc(-z / std::f64::consts::SQRT_2)
}

/// The z with P(Z ≤ z) = `probability`. ±∞ at 1 and 0.
pub(crate) fn normal_quantile(probability: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erf::erfc_inv(2.0 * probability)
}

/// P(|T| ≥ |t|) of Student's distribution. Through the regularised incomplete beta function,
/// I_x(ν/2, 1/2) at x = ν / (ν + t²).
pub(crate) fn student_two_sided(t: f64, degrees: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    // Values that no variance can be told of.
    if t.is_nan() || degrees.is_nan() || degrees <= 0.0 {
        return 1.0;
    }
    if degrees > NORMAL_FROM_DEGREES {
        return erf::erfc(t.abs() / std::f64::consts::SQRT_2);
    }
    beta_reg(degrees / 2.0, 0.5, degrees / (degrees + t * t)).min(1.0)
}

/// The t that |T| exceeds with probability `level`: found by halving, as the tail is at hand and
/// falls in t. `degrees` may be broken, as Welch's are. Infinite where they are no positive number.
pub(crate) fn student_critical(level: f64, degrees: f64) -> f64 {
    if degrees > NORMAL_FROM_DEGREES {
        return normal_quantile(1.0 - level / 2.0);
    }
    if degrees.is_nan() || degrees <= 0.0 {
        return f64::INFINITY;
    }
    let mut high = 2.0;
    while student_two_sided(high, degrees) > level && high < 1e12 {
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if student_two_sided(middle, degrees) > level {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// P(X ≥ `statistic`) of the chi-square distribution. The upper regularised gamma function Q(ν/2,
/// x/2).
pub(crate) fn chi_square_survival(statistic: f64, degrees: f64) -> f64 {
    if statistic <= 0.0 {
        return 1.0;
    }
    if statistic.is_infinite() { 0.0 } else { gamma_ur(degrees / 2.0, statistic / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-5 * expected.abs().max(1e-3), "{found}, {expected}");
    }

    #[test]
    fn values_agree_with_printed_tables() {
        check(normal_quantile(0.975), 1.959_963_985);
        check(normal_quantile(0.2), -0.841_621_234);
        check(normal_cumulative(-1.644_853_627), 0.05);
        check(student_critical(0.05, 1.0), 12.706_204_7);
        check(student_critical(0.05, 10.0), 2.228_138_85);
        check(student_critical(0.01, 30.0), 2.749_995_65);
        check(student_critical(0.05, 100_000.0), 1.959_987_7);
        check(student_critical(0.05, 1e9), 1.959_963_985);
        check(student_two_sided(-2.228_138_85, 10.0), 0.05);
        check(chi_square_survival(3.841_458_82, 1.0), 0.05);
        check(chi_square_survival(27.877_164_9, 9.0), 0.001);
        assert_eq!(student_two_sided(0.0, 5.0), 1.0);
        assert_eq!(chi_square_survival(0.0, 3.0), 1.0);
    }
}

//! Medians and spreads.

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle value (NaN of none).
pub fn median(values: &[f64]) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// How far the values differ: largest less smallest, in percent of the median.
pub fn spread(values: &[f64]) -> f64 {
    let values = sorted(values);
    match (values.first(), values.last()) {
        (Some(low), Some(high)) => (high - low) / median(&values) * 100.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(spread(&[8.0, 10.0, 12.0]), 40.0);
        assert!(median(&[]).is_nan() && spread(&[]).is_nan());
    }
}

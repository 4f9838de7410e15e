//! A figure beside its budget, and the tables of them.

use serde::Serialize;

/// What DESIGN section 7 allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Budget {
    /// Not above.
    AtMost(f64),
    /// Under.
    Under(f64),
    /// Not below.
    AtLeast(f64),
    /// None at all: a count that is no matter of noise, so that no second run may mend it.
    Zero,
}

impl Budget {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::Under(limit) => value < limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Zero => value == 0.0,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Within its budget.
    Ok,
    /// Not within its budget.
    Over,
    /// Has no budget, or one that is not due yet.
    Reported,
}

/// One measured number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    /// What it is called, here and in docs/overhead.md.
    pub(super) name: &'static str,
    /// The number; NaN where nothing was measured, which holds no budget.
    pub(super) value: f64,
    /// Its unit, as it is shown.
    pub(super) unit: &'static str,
    /// The budget as it is shown.
    pub(super) budget: String,
    /// What came of it.
    pub(super) verdict: Verdict,
    /// How it was taken.
    pub(super) how: String,
    /// The first of two runs, when that was over its budget.
    pub(super) first_run: Option<f64>,
    /// Noise cannot make it, so that the worse of two runs counts.
    #[serde(skip)]
    exact: bool,
}

impl Figure {
    /// A number that is printed and not judged.
    pub(super) fn reported(name: &'static str, value: f64, unit: &'static str, how: impl Into<String>) -> Self {
        let how = how.into();
        Self {
            name,
            value,
            unit,
            budget: String::new(),
            verdict: Verdict::Reported,
            how,
            first_run: None,
            exact: false,
        }
    }

    /// A number that has to keep its budget.
    pub(super) fn judged(
        name: &'static str,
        value: f64,
        unit: &'static str,
        budget: Budget,
        how: impl Into<String>,
    ) -> Self {
        let verdict = if budget.holds(value) { Verdict::Ok } else { Verdict::Over };
        let shown = match budget {
            Budget::AtMost(limit) => format!("at most {limit} {unit}"),
            Budget::Under(limit) => format!("under {limit} {unit}"),
            Budget::AtLeast(limit) => format!("at least {limit} {unit}"),
            Budget::Zero => "0".to_owned(),
        };
        let exact = budget == Budget::Zero;
        Self { budget: shown.trim_end().to_owned(), verdict, exact, ..Self::reported(name, value, unit, how) }
    }

    /// A number whose budget is not due yet: not held against it, but kept once it is reached.
    pub(super) fn not_due(mut self) -> Self {
        if self.verdict == Verdict::Over {
            self.verdict = Verdict::Reported;
            self.budget.push_str(" (not due yet)");
        }
        self
    }

    /// The figure of two runs, of which this is the second.
    pub(super) fn after(self, first: Self) -> Self {
        if self.exact {
            // What was not measured the first time is no loss.
            return if first.verdict == Verdict::Over && !first.value.is_nan() { first } else { self };
        }
        Self { first_run: Some(first.value), ..self }
    }

    /// The number with its unit; three significant digits.
    fn shown(&self) -> String {
        if self.value.is_nan() {
            return "not measured".to_owned();
        }
        let digits = match self.value.abs() {
            v if v == v.trunc() || v >= 100.0 => 0,
            v if v >= 10.0 => 1,
            v if v >= 1.0 => 2,
            _ => 3,
        };
        format!("{:.digits$} {}", self.value, self.unit).trim_end().to_owned()
    }

    fn verdict(&self) -> &'static str {
        match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Over => "OVER",
            Verdict::Reported => "",
        }
    }

    fn how(&self) -> String {
        let first = self.first_run.map(|first| format!(" Second run; {first:.3} in the first."));
        format!("{}{}", self.how, first.unwrap_or_default())
    }
}

/// For a terminal: name, figure, budget and verdict on a line, how it was taken below.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut out = String::new();
    for figure in figures {
        let (name, shown, budget) = (figure.name, figure.shown(), &figure.budget);
        let line = format!("{name:<42} {shown:>18}   {budget:<28} {}", figure.verdict());
        out.push_str(&format!("{}\n    {}\n", line.trim_end(), figure.how()));
    }
    out
}

/// For docs/overhead.md.
pub(super) fn markdown(figures: &[Figure]) -> String {
    let mut out = "| What | Figure | Budget | | How it was taken |\n|---|---|---|---|---|\n".to_owned();
    for figure in figures {
        let (name, shown, budget) = (figure.name, figure.shown(), &figure.budget);
        out.push_str(&format!("| {name} | {shown} | {budget} | {} | {} |\n", figure.verdict(), figure.how()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_holds_up_to_its_limit_and_nothing_measured_holds_none() {
        for (budget, good, bad) in [
            (Budget::AtMost(2.0), 2.0, 2.01),
            (Budget::Under(1.0), 0.99, 1.0),
            (Budget::AtLeast(2.0), 2.0, 1.99),
            (Budget::Zero, 0.0, 1.0),
        ] {
            assert!(budget.holds(good) && !budget.holds(bad) && !budget.holds(f64::NAN), "{budget:?}");
        }
    }

    #[test]
    fn a_second_run_mends_noise_but_no_loss() {
        let of = |value, budget| Figure::judged("x", value, "", budget, "");
        let noise = of(0.5, Budget::Under(1.0)).after(of(1.5, Budget::Under(1.0)));
        assert_eq!((noise.verdict, noise.first_run), (Verdict::Ok, Some(1.5)));
        assert_eq!(of(0.0, Budget::Zero).after(of(3.0, Budget::Zero)).verdict, Verdict::Over);
        assert_eq!(of(0.0, Budget::Zero).after(of(f64::NAN, Budget::Zero)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_budget_that_is_not_due_is_judged_once_it_is_met() {
        let of = |value| Figure::judged("x", value, "/s", Budget::AtLeast(2.0), "").not_due().verdict;
        assert_eq!((of(1.0), of(2.0)), (Verdict::Reported, Verdict::Ok));
    }

    #[test]
    fn figures_are_shown_with_three_digits() {
        let shown = |value| Figure::reported("x", value, "us", "").shown();
        assert_eq!(
            [0.0, 0.0123, 1.234, 12.34, 1234.5].map(shown),
            ["0 us", "0.012 us", "1.23 us", "12.3 us", "1234 us"]
        );
    }
}

//! A list of findings, each PASS, WARN or FAIL with a sentence.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Pass,
    /// Works, but not as well as it could.
    Warn,
    /// Does not work.
    Fail,
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<(Grade, String)>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, grade: Grade, sentence: impl Into<String>) {
        self.list.push((grade, sentence.into()));
    }

    /// Whether anything does not work.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.list.iter().any(|(grade, _)| *grade == Grade::Fail)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (grade, sentence) in &self.list {
            let grade = match grade {
                Grade::Pass => "PASS",
                Grade::Warn => "WARN",
                Grade::Fail => "FAIL",
            };
            writeln!(f, "{grade}  {sentence}")?;
        }
        Ok(())
    }
}

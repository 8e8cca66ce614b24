//! Several adapters as one: `a+0.5*b`. In: a formula, or names with scales. Out: the parts in one order,
//! whatever order they were given in, and the identity of what they make. Knows no weights, and not
//! which adapters there are.

use crate::error::AdapterError;
use crate::names::{MAX_NAME_BYTES, check_adapter_name};
use crate::quoted::Quoted;
use std::fmt;
use std::path::Path;
use weft_types::ContentHash;

/// The most adapters that one composition may have.
pub const MAX_PARTS: usize = 8;
/// The largest scale, either way.
pub const MAX_SCALE: f32 = 100.0;
/// A path that begins so is the formula of a composition, to be loaded under a name.
pub(crate) const SCHEME: &str = "compose:";
/// Begins the key of a composition that nobody gave a name. No adapter's name does.
const UNNAMED: char = '=';

/// One adapter of a composition.
#[derive(Clone, Debug, PartialEq)]
pub struct CompositionPart {
    /// The adapter's name.
    pub name: String,
    /// What its updates are multiplied with, beside their own scale.
    pub scale: f32,
}

// Scales are finite.
impl Eq for CompositionPart {}

/// Adapters whose updates add up: `y = W x + Σ scale · (s · B A x)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition {
    /// By name: sums of floats depend on their order.
    parts: Box<[CompositionPart]>,
}

impl Composition {
    /// Of one to [`MAX_PARTS`] parts, each named once.
    ///
    /// # Errors
    /// [`AdapterError::Composition`], or [`AdapterError::InvalidName`].
    pub fn new(mut parts: Vec<CompositionPart>) -> Result<Self, AdapterError> {
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let composition = Self { parts: parts.into() };
        match composition.flaw()? {
            None => Ok(composition),
            Some(reason) => Err(refused(&composition.to_string(), reason)),
        }
    }

    fn flaw(&self) -> Result<Option<String>, AdapterError> {
        let parts = &self.parts;
        if parts.is_empty() || parts.len() > MAX_PARTS {
            return Ok(Some(format!("must have 1 to {MAX_PARTS} parts, not {}", parts.len())));
        }
        for part in parts {
            check_adapter_name(&part.name)?;
            // Not a number is in no range.
            if !(-MAX_SCALE..=MAX_SCALE).contains(&part.scale) {
                let reason = format!(
                    "scales {:?} by {}; a scale lies between -{MAX_SCALE} and {MAX_SCALE}",
                    part.name, part.scale
                );
                return Ok(Some(reason));
            }
        }
        let twice = parts.windows(2).find(|pair| pair[0].name == pair[1].name);
        Ok(twice.map(|pair| format!("names {:?} twice; give it one scale", pair[0].name)))
    }

    /// The formula in a path `compose:a+0.5*b`; `None` for the path of a directory.
    #[must_use]
    pub fn formula_in(path: &Path) -> Option<&str> {
        path.to_str()?.strip_prefix(SCHEME)
    }

    /// The parts, by name.
    #[must_use]
    pub fn parts(&self) -> &[CompositionPart] {
        &self.parts
    }

    /// The adapter itself, if that is all.
    #[must_use]
    pub fn single(&self) -> Option<&str> {
        match &*self.parts {
            [part] if part.scale == 1.0 => Some(&part.name),
            _ => None,
        }
    }

    /// Under which a registry knows it without a name: different for different compositions, whatever
    /// their names hold.
    pub(crate) fn key(&self) -> String {
        let terms = self.parts.iter().map(|part| format!("{}*{}", part.scale, part.name));
        format!("{UNNAMED}{}", terms.collect::<Vec<_>>().join("+"))
    }

    /// The identity of what parts with these contents, in their order, make.
    pub(crate) fn content_hash(&self, of_parts: &[ContentHash]) -> ContentHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"weft composition 1\0");
        for (part, content) in self.parts.iter().zip(of_parts) {
            hasher.update(&content.0);
            hasher.update(&part.scale.to_bits().to_le_bytes());
        }
        ContentHash(*hasher.finalize().as_bytes())
    }
}

/// The formula: `a+0.5*b`.
impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            let plus = if index == 0 { "" } else { "+" };
            match part.scale {
                1.0 => write!(f, "{plus}{}", part.name)?,
                scale => write!(f, "{plus}{scale}*{}", part.name)?,
            }
        }
        Ok(())
    }
}

/// Whether a registry's key is that of a composition without a name.
pub(crate) fn is_unnamed(key: &str) -> bool {
    key.starts_with(UNNAMED)
}

/// A formula: terms `name` or `scale*name` with `+` between them. Names with a `+` of their own cannot
/// be written so.
#[derive(Clone, Debug)]
pub(crate) struct Formula<'a> {
    text: &'a str,
    terms: Vec<(Option<&'a str>, &'a str)>,
}

impl<'a> Formula<'a> {
    /// `None` if `text` is not one, and may be a name.
    pub(crate) fn of(text: &'a str) -> Option<Self> {
        let is_formula = text.contains(['+', '*']) && text.len() <= MAX_PARTS * MAX_NAME_BYTES;
        let terms = || text.split('+').map(split_term).collect();
        let formula = is_formula.then(|| Self { text, terms: terms() })?;
        let is_readable = formula.terms.iter().all(|(_, name)| check_adapter_name(name).is_ok());
        // A star is in no name, so it says that a formula is meant.
        (is_readable || text.contains('*')).then_some(formula)
    }

    /// What it means.
    pub(crate) fn read(&self) -> Result<Composition, AdapterError> {
        let part = |&(scale, name): &(Option<&str>, &str)| {
            let scale = scale.map_or(Ok(1.0), |scale| read_scale(self.text, scale))?;
            Ok(CompositionPart { name: name.to_owned(), scale })
        };
        Composition::new(self.terms.iter().map(part).collect::<Result<_, _>>()?)
    }

    /// Names with a `+` that could be meant by several of its terms: an adapter that has one of them
    /// makes it ambiguous. The whole text is none of them.
    pub(crate) fn other_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for first in 0..self.terms.len().min(MAX_PARTS) {
            let mut name = self.terms[first].1.to_owned();
            let others = self.terms[first + 1..].iter().take(MAX_PARTS);
            for (_, other) in others.take_while(|(scale, _)| scale.is_none()) {
                name = format!("{name}+{other}");
                if name != self.text {
                    names.push(name.clone());
                }
            }
        }
        names
    }
}

fn split_term(term: &str) -> (Option<&str>, &str) {
    match term.split_once('*') {
        Some((scale, name)) => (Some(scale), name),
        None => (None, term),
    }
}

fn read_scale(formula: &str, scale: &str) -> Result<f32, AdapterError> {
    // No infinities and no exponents, whose `+` would end a term.
    let is_plain = scale.bytes().all(|byte| byte.is_ascii_digit() || b".-".contains(&byte));
    match scale.parse() {
        Ok(value) if is_plain => Ok(value),
        _ => {
            let reason = format!("has the scale {}; write a number like 0.5", Quoted(scale));
            Err(refused(formula, reason))
        }
    }
}

/// A refusal of the composition that a formula writes.
pub(crate) fn refused(formula: &str, reason: String) -> AdapterError {
    AdapterError::Composition { formula: Quoted(formula).to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Composition, AdapterError> {
        Formula::of(text).expect("a formula").read()
    }

    #[test]
    fn formulas_are_read_and_shown_in_one_order() {
        let read = |text| read(text).unwrap().to_string();
        assert_eq!(read("b+a"), "a+b");
        assert_eq!(read("0.70*b+a"), "a+0.7*b");
        assert_eq!(read("-2*x/y@1:b"), "-2*x/y@1:b");
        assert_eq!(read("1*a+1.0*b"), "a+b");
    }

    #[test]
    fn what_may_be_a_name_is_no_formula() {
        for text in ["a", "c++", "a+", "+a", "a++b", "a:0.5", "", "x y+z"] {
            assert!(Formula::of(text).is_none(), "{text}");
        }
    }

    #[test]
    fn flaws_are_named() {
        let cases = [
            ("a+a", "names \"a\" twice"),
            ("a+2*a", "names \"a\" twice"),
            ("x*a", "has the scale \"x\""),
            ("inf*a", "has the scale \"inf\""),
            ("1e2*a", "has the scale \"1e2\""),
            ("*a", "has the scale \"\""),
            ("101*a", "between -100 and 100"),
            ("2*", "is empty"),
            ("2*a*b", "may only contain"),
            ("a+b+c+d+e+f+g+h+i", "1 to 8 parts, not 9"),
        ];
        for (text, words) in cases {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn names_that_several_terms_could_mean_are_listed() {
        let names = |text| Formula::of(text).unwrap().other_names();
        assert_eq!(names("a+b+c"), ["a+b", "b+c"]);
        assert_eq!(names("a+0.5*b+c"), ["b+c"]);
        assert_eq!(names("2*a+b"), ["a+b"]);
        assert!(names("a+b").is_empty());
    }

    proptest! {
        /// Formulas come from clients.
        #[test]
        fn any_text_is_refused_or_means_what_its_formula_shows(
            text in r"([ab:/@._+*0-9-]|\PC){0,40}|(-?[0-9]{1,2}(\.[0-9])?\*)?[a-c]{1,2}(\+[a-c]{1,2}){0,3}",
        ) {
            let Some(formula) = Formula::of(&text) else { return Ok(()) };
            prop_assert!(formula.other_names().len() <= MAX_PARTS * MAX_PARTS);
            let Ok(composition) = formula.read() else { return Ok(()) };
            let shown = composition.to_string();
            match composition.single() {
                Some(name) => prop_assert_eq!(shown, name),
                None => prop_assert_eq!(read(&shown).unwrap(), composition),
            }
        }
    }

    #[test]
    fn keys_and_hashes_tell_compositions_apart() {
        let of = |parts: &[(&str, f32)]| {
            let part = |&(name, scale): &(&str, f32)| CompositionPart { name: name.into(), scale };
            Composition::new(parts.iter().map(part).collect()).unwrap()
        };
        let all = [
            of(&[("a", 1.0), ("b", 1.0)]),
            of(&[("a+b", 1.0)]),
            of(&[("a", 1.0), ("b", 0.5)]),
            of(&[("a", 0.5), ("b", 1.0)]),
            of(&[("a+1", 1.0), ("b", 1.0)]),
        ];
        let contents = [ContentHash([1; 32]), ContentHash([2; 32])];
        for (i, a) in all.iter().enumerate() {
            assert!(is_unnamed(&a.key()) && check_adapter_name(&a.key()).is_err());
            for b in &all[..i] {
                assert_ne!(a.key(), b.key());
            }
        }
        assert_ne!(all[0].content_hash(&contents), all[2].content_hash(&contents));
        let swapped = [contents[1], contents[0]];
        assert_ne!(all[0].content_hash(&contents), all[0].content_hash(&swapped));
        assert_eq!(of(&[("b", 0.5), ("a", 1.0)]), all[2]);
        assert_eq!(of(&[("a", 1.0)]).single(), Some("a"));
        assert_eq!(all[0].single(), None);
    }
}

//! A stream of text in, the same stream out, cut where a stop string completes first.
//!
//! Text that may be the beginning of a stop string waits. How the text is cut into pieces never
//! changes the result.

/// Finds the first stop string in a stream of text.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    include_in_output: bool,
    held: String,
    stopped: bool,
}

/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is safe to send; often empty.
    pub text: String,
    /// The stop string that completed, by its place in the list; nothing follows it.
    pub stopped: Option<usize>,
}

impl StopStrings {
    /// Empty strings in `stops` never stop. With `include_in_output` the stop string itself is
    /// sent too.
    #[must_use]
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        Self { stops, include_in_output, held: String::new(), stopped: false }
    }

    /// Takes the next piece. After a stop, everything is swallowed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::default();
        }
        self.held.push_str(piece);
        // The match that ends first; of those that end there, the longest.
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str()).filter(|_| !stop.is_empty())?;
            Some((start + stop.len(), start, index))
        });
        if let Some((end, start, index)) = matches.min() {
            self.stopped = true;
            self.held.truncate(if self.include_in_output { end } else { start });
            return StopOutcome { text: std::mem::take(&mut self.held), stopped: Some(index) };
        }
        let waiting = self.held.split_off(self.held.len() - self.num_held_bytes());
        StopOutcome { text: std::mem::replace(&mut self.held, waiting), stopped: None }
    }

    /// The text that was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the text that is the beginning of a stop string.
    fn num_held_bytes(&self) -> usize {
        let longest_of = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(self.held.len());
            let lens = (1..=most).rev().filter(|len| stop.is_char_boundary(*len));
            lens.into_iter()
                .find(|len| stop.get(..*len).is_some_and(|prefix| self.held.ends_with(prefix)))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<usize>) {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stop_strings = StopStrings::new(stops, include);
        let mut text = String::new();
        for piece in pieces {
            let outcome = stop_strings.push(piece);
            text.push_str(&outcome.text);
            if outcome.stopped.is_some() {
                assert_eq!(stop_strings.push("more"), StopOutcome::default());
                assert_eq!(stop_strings.finish(), "");
                return (text, outcome.stopped);
            }
        }
        text.push_str(&stop_strings.finish());
        (text, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_never_sent() {
        assert_eq!(run(&["</s>"], false, &["a<", "/", "s", ">b"]), ("a".to_owned(), Some(0)));
        assert_eq!(run(&["</s>"], true, &["a<", "/", "s", ">b"]), ("a</s>".to_owned(), Some(0)));
        assert_eq!(run(&["</s>"], false, &["a<", "/t>"]), ("a</t>".to_owned(), None));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut stops = StopStrings::new(vec!["\n\n".to_owned(), String::new()], false);
        assert_eq!(stops.push("one\n").text, "one");
        assert_eq!(stops.push("two").text, "\ntwo");
        assert_eq!(stops.push("\n").text, "");
        assert_eq!(stops.finish(), "\n");
    }

    #[test]
    fn of_two_stop_strings_the_one_that_completes_first_wins() {
        assert_eq!(run(&["abcd", "bc"], false, &["xabcd"]), ("xa".to_owned(), Some(1)));
        assert_eq!(run(&["bc", "abc"], false, &["xabcd"]), ("x".to_owned(), Some(1)));
    }

    /// Looks at every end, one character after another.
    fn naive(stops: &[String], include: bool, text: &str) -> (String, Option<usize>) {
        for end in (1..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let complete = stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some((index, stop)) =
                complete.min_by_key(|(index, stop)| (usize::MAX - stop.len(), *index))
            {
                let end = if include { end } else { end - stop.len() };
                return (text[..end].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn any_pieces_give_what_a_naive_search_of_the_whole_gives(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,5}", 0..8),
            include in any::<bool>(),
        ) {
            let expected = naive(&stops, include, &pieces.concat());
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, include, &pieces), expected);
        }
    }
}

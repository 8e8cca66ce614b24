//! A template's source as transformers reads it, in the dialect of `minijinja`.

/// Line ends are `\n`, and `{% generation %}` blocks, which only mark what an assistant said, are
/// plain scopes.
pub(super) fn normalize(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some((before, tag)) = rest.find("{%").and_then(|at| rest.split_at_checked(at)) {
        let Some((tag, after)) = tag.find("%}").and_then(|at| tag.split_at_checked(at)) else {
            break;
        };
        out.push_str(before);
        let is_control = |char: char| char.is_whitespace() || matches!(char, '%' | '-' | '+' | '{');
        match tag.trim_matches(is_control) {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn generation_blocks_become_scopes_and_keep_their_whitespace_control() {
        assert_eq!(
            normalize("a{%- generation -%}b{% endgeneration %}c{% set generation = 1 %}"),
            "a{%- with -%}b{% endwith %}c{% set generation = 1 %}"
        );
        assert_eq!(normalize("open {% generation"), "open {% generation");
    }

    #[test]
    fn line_ends_are_newlines() {
        assert_eq!(normalize("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}

//! Text that is not ours, made fit to be printed: nothing in it moves a cursor, changes a title or turns a line around.

/// A text of one or more lines. What a terminal would act on is shown as a question mark.
pub fn lines(text: &str) -> String {
    text.chars().map(|letter| if acts(letter) && !matches!(letter, '\n' | '\t') { '?' } else { letter }).collect()
}

/// A text that stands within a line, such as a name.
pub fn line(text: &str) -> String {
    text.chars().map(|letter| if acts(letter) { '?' } else { letter }).collect()
}

/// Control characters, and those that change the direction of what follows or hide in it.
fn acts(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(letter, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal() {
        assert_eq!(lines("a\x1b[2J\r\u{9b}b\n\tc\u{202e}d\u{7f}"), "a?[2J??b\n\tc?d?");
        assert_eq!(line("a\nb\tc"), "a?b?c");
        assert_eq!(line("häßlich 日本 ‰ \u{fffd}"), "häßlich 日本 ‰ \u{fffd}");
    }
}

//! Text that is not ours, made fit to be printed: nothing in it moves a cursor, changes a title or turns a line around.

/// A message, which is one line, and may be followed by lines that cannot be taken for another message: those that show a
/// place in a file, and panzerctl's list of workers. Every other line feed came with a name or a value from outside.
pub fn message(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (at, part) in text.split('\n').enumerate() {
        if at > 0 {
            shown.push(if belongs_to_message(part) { '\n' } else { '?' });
        }
        shown.push_str(&line(part));
    }
    shown
}

fn belongs_to_message(line: &str) -> bool {
    let is_margin = |margin: &str| margin.bytes().all(|byte| byte == b' ' || byte.is_ascii_digit());
    line.starts_with("  worker ") || line.split_once(" |").is_some_and(|(margin, _)| is_margin(margin))
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
        assert_eq!(message("a\x1b[2J\r\u{9b}b\n\tc\u{202e}d\u{7f}"), "a?[2J??b??c?d?");
        let place = "f.yml:3:1: wrong\n  |\n3 | a: |\n  | ^\n  worker 3 was killed by SIGKILL";
        assert_eq!(message(place), place);
        assert_eq!(message("./a\npanzer: stopped\n\n|b\n12"), "./a?panzer: stopped??|b?12");
        assert_eq!(line("a\nb\tc"), "a?b?c");
        assert_eq!(line("häßlich 日本 ‰ \u{fffd}"), "häßlich 日本 ‰ \u{fffd}");
    }
}

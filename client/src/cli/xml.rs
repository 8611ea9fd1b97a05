//! A writer of small XML documents, laid out as libxml2 does for gluster: two spaces for each level, an element with
//! text and elements inside on one line.

/// An XML document under construction.
#[derive(Default, Debug)]
pub(crate) struct Xml {
    text: String,
    open: Vec<&'static str>,
    /// Elements go on one line while above zero.
    inline: usize,
}

impl Xml {
    fn indent(&mut self) {
        if self.inline == 0 {
            for _ in 0..self.open.len() {
                self.text.push_str("  ");
            }
        }
    }

    fn newline(&mut self) {
        if self.inline == 0 {
            self.text.push('\n');
        }
    }

    /// An element with elements inside; an empty one if nothing is written there.
    pub(crate) fn within(&mut self, name: &'static str, write: impl FnOnce(&mut Self)) {
        self.indent();
        self.text.push('<');
        self.text.push_str(name);
        let before = self.text.len();
        self.text.push('>');
        self.newline();
        let nothing = self.text.len();
        self.open.push(name);
        write(self);
        self.open.pop();
        if self.text.len() == nothing {
            self.text.truncate(before);
            self.text.push_str("/>");
        } else {
            self.indent();
            self.text.push_str("</");
            self.text.push_str(name);
            self.text.push('>');
        }
        self.newline();
    }

    /// An element with text; an empty one for an empty text.
    pub(crate) fn element(&mut self, name: &'static str, text: impl std::fmt::Display) {
        let text = text.to_string();
        self.indent();
        if text.is_empty() {
            self.text.push_str(&format!("<{name}/>"));
        } else {
            self.text
                .push_str(&format!("<{name}>{}</{name}>", escaped(&text, false)));
        }
        self.newline();
    }

    /// An element with one attribute, text, and elements behind the text, all on one line.
    pub(crate) fn mixed(
        &mut self,
        name: &'static str,
        attribute: (&str, &str),
        text: &str,
        write: impl FnOnce(&mut Self),
    ) {
        self.indent();
        let value = escaped(attribute.1, true);
        self.text.push_str(&format!(
            "<{name} {}=\"{value}\">{}",
            attribute.0,
            escaped(text, false)
        ));
        self.inline += 1;
        write(self);
        self.inline -= 1;
        self.text.push_str(&format!("</{name}>"));
        self.newline();
    }
}

/// Text as it stands between tags or, with `quoted`, in an attribute. Characters that XML cannot have become U+FFFD.
fn escaped(text: &str, quoted: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            '"' if quoted => out.push_str("&quot;"),
            '\n' if quoted => out.push_str("&#10;"),
            '\t' if quoted => out.push_str("&#9;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The document every command answers with: result, error number and text, then what `write` adds.
pub(crate) fn cli_output(
    op_ret: i32,
    errno: i32,
    error: &str,
    write: impl FnOnce(&mut Xml),
) -> String {
    let mut xml = Xml::default();
    xml.within("cliOutput", |xml| {
        xml.element("opRet", op_ret);
        xml.element("opErrno", errno);
        xml.element("opErrstr", error);
        write(xml);
    });
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n{}",
        xml.text
    )
}

/// The document of a success.
pub(crate) fn done(write: impl FnOnce(&mut Xml)) -> String {
    cli_output(0, 0, "", write)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<cliOutput>\n  \
                        <opRet>0</opRet>\n  <opErrno>0</opErrno>\n  <opErrstr/>\n";

    #[test]
    fn levels_are_indented_and_empty_ones_are_short() {
        let text = done(|xml| {
            xml.within("a", |xml| {
                xml.element("b", 1);
                xml.within("c", |_| {});
                xml.mixed("d", ("id", "7"), "text", |xml| {
                    xml.element("e", "x");
                    xml.within("f", |xml| xml.element("g", ""));
                });
            });
        });
        let want = "  <a>\n    <b>1</b>\n    <c/>\n    <d id=\"7\">text<e>x</e><f><g/></f></d>\n  </a>\n</cliOutput>\n";
        assert_eq!(text, format!("{HEAD}{want}"));
    }

    #[test]
    fn nothing_in_a_text_ends_its_element() {
        let text = done(|xml| {
            xml.element("a", "<b>&\"'\r\n\u{1}</b>]]>");
            xml.mixed("c", ("x", "\"<&>\n"), "<!--", |_| {});
        });
        let want = "  <a>&lt;b&gt;&amp;\"'&#13;\n\u{fffd}&lt;/b&gt;]]&gt;</a>\n  \
                    <c x=\"&quot;&lt;&amp;&gt;&#10;\">&lt;!--</c>\n</cliOutput>\n";
        assert_eq!(text, format!("{HEAD}{want}"));
    }
}

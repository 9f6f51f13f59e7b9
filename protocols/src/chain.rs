use std::error::Error;

/// The text of an error with all its causes, each said once, in one line: what goes over the wire and
/// into logs.
///
/// Libraries differ in whether an error's own text repeats its cause; a cause whose text is already
/// there is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = Layer(
            "cannot mount /proc: no such device",
            Some(Box::new(Layer("no such device", Some(Box::new(Layer("ENODEV", None)))))),
        );
        assert_eq!(chain(&error), "cannot mount /proc: no such device: ENODEV");
    }
}

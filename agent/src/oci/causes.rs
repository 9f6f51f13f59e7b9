//! The causes of libcontainer's errors.
//!
//! libcontainer works in three processes, and an error travels between them as the text of its
//! outermost layer ("failed to unix syscall"). The layers below are only in its log records, so the
//! helper sends those of level ERROR to the agent, which adds the first one to the error.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::report::Report;
use super::reporter::Reporter;

/// Sends error records to the agent from now on.
pub fn collect(reporter: &Reporter) {
    // It fails only if it was called before.
    let _ = tracing::subscriber::set_global_default(Causes(reporter.clone()));
}

struct Causes(Reporter);

impl Subscriber for Causes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.0.send(&Report::Cause(text.finish()));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message of a record, with its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        if !self.fields.is_empty() {
            self.message.push_str(" (");
            self.message.push_str(&self.fields);
            self.message.push(')');
        }
        self.message
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            write!(self.fields, "{comma}{} {value:?}", field.name())
        };
    }
}

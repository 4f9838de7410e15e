//! The limits on attributes and events that the user sets (OpenTelemetry specification, "Attribute Limits", "Span Limits").

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};

use super::config::SpanLimits;

/// Cuts a span down. What goes is counted in the span, the last attributes and events first.
pub(super) fn apply(span: &mut Span, limits: &SpanLimits) {
    let SpanLimits { value_chars, attributes, events, event_attributes } = *limits;
    span.dropped_attributes_count += cut(&mut span.attributes, attributes);
    span.dropped_events_count += cut(&mut span.events, events);
    span.attributes.iter_mut().for_each(|attribute| shorten(attribute, value_chars));
    for event in &mut span.events {
        event.dropped_attributes_count += cut(&mut event.attributes, event_attributes);
        event.attributes.iter_mut().for_each(|attribute| shorten(attribute, value_chars));
    }
}

fn cut<T>(items: &mut Vec<T>, limit: usize) -> u32 {
    let dropped = items.len().saturating_sub(limit);
    items.truncate(limit);
    u32::try_from(dropped).unwrap_or(u32::MAX)
}

/// Cuts a text, and each text of an array, to so many characters; numbers stay.
fn shorten(attribute: &mut KeyValue, chars: usize) {
    fn shorten(text: &mut String, chars: usize) {
        if let Some((end, _)) = text.char_indices().nth(chars) {
            text.truncate(end);
        }
    }
    match attribute.value.as_mut().and_then(|value| value.value.as_mut()) {
        Some(Value::StringValue(text)) => shorten(text, chars),
        Some(Value::ArrayValue(array)) => {
            for AnyValue { value } in &mut array.values {
                if let Some(Value::StringValue(text)) = value {
                    shorten(text, chars);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::span::Event;

    use super::*;
    use crate::export::otlp::resource::{array, int, text};

    fn limits() -> SpanLimits {
        SpanLimits::default()
    }

    fn span() -> Span {
        let event = || Event { attributes: vec![text("k", "é€x"), int("n", 1)], ..Event::default() };
        let many = array("list", [Value::StringValue("é€xy".into()), Value::IntValue(5)]);
        Span {
            attributes: vec![text("a", "é€xy"), many, int("n", 12345)],
            events: vec![event(), event()],
            ..Span::default()
        }
    }

    #[test]
    fn the_default_limits_change_nothing() {
        let mut cut = span();
        apply(&mut cut, &limits());
        assert_eq!(cut, span());
    }

    #[test]
    fn texts_are_cut_by_characters_and_numbers_are_not() {
        let mut cut = span();
        apply(&mut cut, &SpanLimits { value_chars: 2, ..limits() });
        let list = array("list", [Value::StringValue("é€".into()), Value::IntValue(5)]);
        assert_eq!(cut.attributes, [text("a", "é€"), list, int("n", 12345)]);
        assert_eq!(cut.events[0].attributes, [text("k", "é€"), int("n", 1)]);
        assert_eq!(cut.dropped_attributes_count, 0);
        let mut none = span();
        apply(&mut none, &SpanLimits { value_chars: 0, ..limits() });
        assert_eq!(none.attributes[0], text("a", ""));
    }

    #[test]
    fn what_is_over_a_count_goes_and_is_counted() {
        let mut cut = span();
        apply(&mut cut, &SpanLimits { attributes: 1, events: 1, event_attributes: 0, ..limits() });
        assert_eq!((cut.attributes.len(), cut.dropped_attributes_count), (1, 2));
        assert_eq!((cut.events.len(), cut.dropped_events_count), (1, 1));
        assert_eq!((cut.events[0].attributes.len(), cut.events[0].dropped_attributes_count), (0, 2));
    }
}

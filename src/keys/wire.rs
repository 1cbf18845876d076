//! Values as provenance has them, and as `BuildKit` writes them before hashing.
//!
//! [`messages!`] takes the fields of a message once, with the name and the order that the JSON has in
//! `BuildKit` (the tags of the generated struct); reading and writing follow from that list.
//!
//! Reading is generous, because nothing depends on it being right: a value of another type counts
//! as absent, names match without regard to case (v0.17 writes `Exec`, `ByID`), numbers may be
//! strings, and what is not known here is kept and written last, where new fields are added. What is
//! misread gives a digest that proves nothing.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::dialects::{Dialect, Encoder, Object};

/// A value that is read from provenance and written for a hash.
pub(super) trait Wire {
    /// Takes a value as it stands in provenance.
    fn read(value: &Value) -> Self;
    /// Writes it as `BuildKit` does before hashing.
    fn write(&self, encoder: &mut Encoder);
}

impl Wire for String {
    fn read(value: &Value) -> Self {
        value.as_str().unwrap_or_default().to_owned()
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.string(self);
    }
}

impl Wire for bool {
    fn read(value: &Value) -> Self {
        value.as_bool().unwrap_or_else(|| value.as_str() == Some("true"))
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.raw(if *self { "true" } else { "false" });
    }
}

impl Wire for i64 {
    fn read(value: &Value) -> Self {
        #[allow(clippy::cast_possible_truncation)] // saturates; SLSA 1 went through a float already
        let float = || value.as_f64().map(|f| f as Self);
        let text = || value.as_str().and_then(|text| text.parse().ok());
        value.as_i64().or_else(float).or_else(text).unwrap_or_default()
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.integer(*self);
    }
}

/// A `[]byte`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Wire for Bytes {
    fn read(value: &Value) -> Self {
        Self(value.as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default())
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.bytes(&self.0);
    }
}

/// A pointer; an empty message behind it is written as `{}`.
impl<T: Wire> Wire for Option<T> {
    fn read(value: &Value) -> Self {
        if value.is_null() { None } else { Some(T::read(value)) }
    }

    fn write(&self, encoder: &mut Encoder) {
        match self {
            Some(value) => value.write(encoder),
            None => encoder.raw("{}"),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn read(value: &Value) -> Self {
        value.as_array().into_iter().flatten().map(T::read).collect()
    }

    fn write(&self, encoder: &mut Encoder) {
        encoder.list(self, |encoder, item| item.write(encoder));
    }
}

/// A map: Go sorts the keys by their bytes, as `BTreeMap` does; an empty one is nil.
impl<T: Wire> Wire for BTreeMap<String, T> {
    fn read(value: &Value) -> Self {
        value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), T::read(v))).collect()
    }

    fn write(&self, encoder: &mut Encoder) {
        if self.is_empty() {
            return encoder.raw("null");
        }
        encoder.object(|object| {
            for (key, value) in self {
                object.with(key, |encoder| value.write(encoder));
            }
        });
    }
}

/// The value of `name` in `object`, whatever the case of its letters; the exact name wins.
pub(super) fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let fold = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    object.get(name).or_else(fold).filter(|value| !value.is_null())
}

/// When a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Not where it is zero: `omitempty`.
    Set,
    /// Where it is zero too, but only in [`Dialect::Gogo`].
    SetOrGogo,
}

/// A field of a message, written or left out as its tag says.
pub(super) fn field<T>(object: &mut Object<'_>, name: &str, value: &T, when: When)
where
    T: Wire + Default + PartialEq,
{
    let always = when == When::SetOrGogo && object.dialect() == Dialect::Gogo;
    if always || *value != T::default() {
        object.with(name, |encoder| value.write(encoder));
    }
}

/// [`When`] a field is written, as a list of [`messages!`] says it.
macro_rules! when {
    () => {
        $crate::keys::wire::When::Set
    };
    (gogo) => {
        $crate::keys::wire::When::SetOrGogo
    };
}
pub(super) use when;

/// Defines messages by lists of their fields: `name: type = "JSON name"`, with `gogo` behind it for
/// [`When::SetOrGogo`].
macro_rules! messages {
    ($( $(#[$doc:meta])* $name:ident { $( $field:ident: $type:ty = $json:literal $($when:ident)?, )* } )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        #[allow(clippy::struct_field_names)] // the names are those of the messages
        pub(super) struct $name {
            $( pub(super) $field: $type, )*
            /// Fields of a newer release.
            unknown: Vec<(String, Value)>,
        }

        impl Wire for $name {
            fn read(value: &Value) -> Self {
                let mut message = Self::default();
                for (name, value) in value.as_object().into_iter().flatten() {
                    match name.as_str() {
                        $( name if name.eq_ignore_ascii_case($json) => message.$field = Wire::read(value), )*
                        _ if value.is_null() => {}
                        _ => message.unknown.push((name.clone(), value.clone())),
                    }
                }
                message
            }

            fn write(&self, encoder: &mut Encoder) {
                encoder.object(|object| {
                    $( field(object, $json, &self.$field, when!($($when)?)); )*
                    for (name, value) in &self.unknown {
                        object.with(name, |encoder| encoder.value(value));
                    }
                });
            }
        }
    )*};
}
pub(super) use messages;

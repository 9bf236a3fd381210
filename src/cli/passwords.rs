//! The tables of a file that name a TURN server, or the users of a relay: their passwords are fetched from where the table says they are.
//!
//! Done before the file becomes a configuration, which knows `password` only.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use actix_relay::config::TurnUri;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::relay_args::{users_in_environment, users_in_file};
use crate::passwords::Passwords;

/// Where a file is wrong, and how.
pub(super) type Wrong = (Range<usize>, String);

const PLACES: [&str; 3] = ["password", "password_file", "password_env"];

/// Puts a `password` into each table that names a place for it.
pub(super) fn fetch(file: &mut DeTable<'_>, passwords: &dyn Passwords) -> Result<(), Wrong> {
    each(file, "turn", &mut |turn| fetch_one(turn, "server", passwords))?;
    each(file, "session", &mut |session| {
        each(session, "remote", &mut |remote| fetch_one(remote, "turn", passwords))?;
        each(session, "turn_listen", &mut |listen| fetch_one(listen, "server", passwords))
    })?;
    each(file, "relay", &mut |relay| fetch_accounts(relay, passwords))
}

/// Does it with the table of this name, or with all of them.
fn each<'i>(
    inside: &mut DeTable<'i>,
    name: &str,
    with: &mut dyn FnMut(&mut DeTable<'i>) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    match inside.get_mut(name).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => with(table),
        Some(DeValue::Array(tables)) => {
            let mut tables = tables.iter_mut().filter_map(|item| match item.get_mut() {
                DeValue::Table(table) => Some(table),
                _ => None,
            });
            tables.try_for_each(with)
        }
        _ => Ok(()),
    }
}

fn fetch_one(table: &mut DeTable<'_>, server: &str, passwords: &dyn Passwords) -> Result<(), Wrong> {
    if let Some((span, uri)) = text(table, server)? {
        uri.parse::<TurnUri>().map_err(|error| (span, error.to_string()))?;
    }
    fetch_password(table, passwords)
}

fn fetch_password(table: &mut DeTable<'_>, passwords: &dyn Passwords) -> Result<(), Wrong> {
    let user = text(table, "user")?.map(|(span, _)| span);
    let mut given = Vec::new();
    for place in PLACES {
        given.extend(text(table, place)?.map(|(span, value)| (place, span, value.to_owned())));
    }
    let mut given = given.into_iter();
    let (place, span, value) = match (user, given.next(), given.next()) {
        (_, _, Some((_, span, _))) => {
            return Err((span, format!("{} exclude each other", PLACES.join(", "))));
        }
        (None, None, None) => return Ok(()),
        (Some(user), None, None) => return Err((user, format!("user needs one of {}", PLACES.join(", ")))),
        (None, Some((place, span, _)), None) => return Err((span, format!("{place} needs user"))),
        (Some(_), Some(given), None) => given,
    };
    let password = match place {
        "password_file" => passwords.in_file(Path::new(&value)),
        "password_env" => passwords.in_environment(&value),
        _ => return Ok(()),
    };
    let password = password.map_err(|why| (span.clone(), format!("{place}: {why}")))?;
    table.remove(place);
    put(table, "password", span, string(password.expose()));
    Ok(())
}

/// Puts `users` and `shared_key` into the table of a relay that names places for them.
fn fetch_accounts(relay: &mut DeTable<'_>, passwords: &dyn Passwords) -> Result<(), Wrong> {
    if let Some(users) = relay.get("users").filter(|users| !users.get_ref().is_array()) {
        // Those of a file would take its place.
        return Err((
            users.span(),
            "users must be tables in a list, [{ user = …, password = … }]".to_owned(),
        ));
    }
    each(relay, "users", &mut |user| fetch_password(user, passwords))?;
    let (file, variable) = (take(relay, "users_file")?, take(relay, "users_env")?);
    for (place, given) in [("users_file", file), ("users_env", variable)] {
        let Some((span, value)) = given else { continue };
        let users = match place {
            "users_file" => users_in_file(passwords, Path::new(&value)),
            _ => users_in_environment(passwords, &value),
        };
        let users = users.map_err(|why| (span.clone(), format!("{place}: {why}")))?;
        let tables = users.iter().map(|both| {
            let mut table = DeTable::new();
            put(&mut table, "user", span.clone(), string(&both.user));
            put(&mut table, "password", span.clone(), string(both.password.expose()));
            Spanned::new(span.clone(), DeValue::Table(table))
        });
        if let Some(DeValue::Array(named)) = relay.get_mut("users").map(Spanned::get_mut) {
            tables.for_each(|user| named.push(user));
        } else {
            let mut named = DeArray::new();
            tables.for_each(|user| named.push(user));
            put(relay, "users", span.clone(), DeValue::Array(named));
        }
    }
    // It has to be a text, and is not to be repeated where it is none.
    text(relay, "shared_key")?;
    let (file, variable) = (take(relay, "shared_key_file")?, take(relay, "shared_key_env")?);
    let (place, span, key) = match (file, variable) {
        (None, None) => return Ok(()),
        (Some(_), Some((span, _))) => {
            return Err((span, "shared_key_file and shared_key_env exclude each other".to_owned()));
        }
        (Some((span, file)), None) => ("shared_key_file", span, passwords.in_file(Path::new(&file))),
        (None, Some((span, variable))) => ("shared_key_env", span, passwords.in_environment(&variable)),
    };
    let key = key.map_err(|why| (span.clone(), format!("{place}: {why}")))?;
    put(relay, "shared_key", span, string(key.expose()));
    Ok(())
}

fn string(text: &str) -> DeValue<'static> {
    DeValue::String(Cow::Owned(text.to_owned()))
}

fn put<'i>(table: &mut DeTable<'i>, key: &'static str, span: Range<usize>, value: DeValue<'i>) {
    table.insert(Spanned::new(span.clone(), Cow::Borrowed(key)), Spanned::new(span, value));
}

fn take(table: &mut DeTable<'_>, key: &str) -> Result<Option<(Range<usize>, String)>, Wrong> {
    let given = text(table, key)?.map(|(span, value)| (span, value.to_owned()));
    table.remove(key);
    Ok(given)
}

fn text<'t>(table: &'t DeTable<'_>, key: &str) -> Result<Option<(Range<usize>, &'t str)>, Wrong> {
    let Some(value) = table.get(key) else { return Ok(None) };
    match value.get_ref().as_str() {
        Some(text) => Ok(Some((value.span(), text))),
        None => Err((value.span(), format!("{key} must be a text in quotes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passwords::Kept;

    fn fetched(text: &str) -> Result<String, String> {
        let mut root = DeTable::parse(text).unwrap();
        fetch(root.get_mut(), &Kept).map_err(|(at, why)| format!("{}: {why}", &text[at]))?;
        Ok(format!("{root:?}"))
    }

    #[test]
    fn each_table_that_names_a_server_gets_its_password() {
        for table in [
            "[[turn]]\nserver = 'turn:h'\nPW",
            "[[turn]]\n[[turn]]\nserver = 'turn:h'\nPW",
            "[[session]]\n[session.remote]\nturn = 'turn:h'\nPW",
            "[[session]]\n[session.turn_listen]\nserver = 'turn:h'\nPW",
        ] {
            for (given, password) in [
                ("user = 'alice'\npassword_file = 'pw'", "of the file"),
                ("user = 'alice'\npassword_env = 'PW'", "of the environment"),
                ("user = 'alice'\npassword = 'hunter2'", "hunter2"),
            ] {
                let text = table.replace("PW", given);
                let root = fetched(&text).unwrap();
                assert!(root.contains(password), "{text}: {root}");
                assert!(!root.contains("password_"), "{text}: {root}");
            }
        }
        fetched("turn = 1\nsession = [{ remote = 'a:1', turn_listen = 2 }]").unwrap();
    }

    #[test]
    fn a_mistake_is_said_with_its_place_and_without_the_password() {
        for (table, expected) in [
            ("user = 'alice'", "'alice': user needs one of password, password_file, password_env"),
            ("password_env = 'PW'", "'PW': password_env needs user"),
            ("user = 1", "1: user must be a text"),
            ("server = 'stun:h'", "'stun:h': 'stun:h' is not the URI"),
            ("user = 'a'\npassword_file = 'x'", "'x': password_file: no such file"),
            ("user = 'a'\npassword_env = 'X'", "'X': password_env: X is not set"),
            ("user = 'a'\npassword_env = ['PW']", "['PW']: password_env must be a text"),
            (
                "user = 'a'\npassword = 'hunter2'\npassword_env = 'PW'",
                "'PW': password, password_file, password_env",
            ),
        ] {
            let error = fetched(&format!("[[turn]]\n{table}")).unwrap_err();
            assert!(error.starts_with(expected), "{table}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = fetched("[[turn]]\nuser = 'a'\npassword = 4711").unwrap_err();
        assert_eq!(error, "4711: password must be a text in quotes");
    }
}

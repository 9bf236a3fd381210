//! Where the command finds passwords that stand neither in its arguments nor in its file.
//!
//! What goes wrong is said without repeating anything that may be part of a password.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use actix_relay::credentials::Secret;

/// More than any password; a file that is none, such as `/dev/zero`, is not read to its end.
const MAX_READ: u64 = 4096;
/// The same for the users of a relay, all together.
const MAX_LINES_READ: u64 = 4 << 20;

/// `NAME:PASSWORD` is easily given where its place is asked for.
const UNREPEATED: &str = " (its name has a colon, and may be a password: it is not repeated)";

/// Answers with the password, or says in words what is wrong with its place.
pub(crate) trait Passwords {
    /// A file's one line.
    fn in_file(&self, path: &Path) -> Result<Secret, String>;
    /// An environment variable's value.
    fn in_environment(&self, variable: &str) -> Result<Secret, String>;
    /// All lines of a file.
    fn lines_in_file(&self, path: &Path) -> Result<Secret, String>;
    /// All lines of an environment variable.
    fn lines_in_environment(&self, variable: &str) -> Result<Secret, String>;
}

/// This machine's files, and the environment the command was started in.
pub(crate) struct Here;

impl Passwords for Here {
    fn in_file(&self, path: &Path) -> Result<Secret, String> {
        let bytes = read(path, MAX_READ)?;
        one_line(bytes).map_err(|why| format!("{} {why}", path.display()))
    }

    fn in_environment(&self, variable: &str) -> Result<Secret, String> {
        one_line(value_of(variable)?).map_err(|why| format!("the environment variable {variable} {why}"))
    }

    fn lines_in_file(&self, path: &Path) -> Result<Secret, String> {
        let bytes = read(path, MAX_LINES_READ)?;
        all_lines(bytes).map_err(|why| format!("{} {why}", path.display()))
    }

    fn lines_in_environment(&self, variable: &str) -> Result<Secret, String> {
        all_lines(value_of(variable)?).map_err(|why| format!("the environment variable {variable} {why}"))
    }
}

/// One byte more than may be there, if it is. Warns where others can read it too.
fn read(path: &Path, max: u64) -> Result<Vec<u8>, String> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| match name.contains(':') {
        true => format!("the file: {error}{UNREPEATED}"),
        false => format!("{name}: {error}"),
    })?;
    if is_for_everybody(&file) {
        crate::cli::to_stderr(
            "warning",
            &format!("{name} can be read by everybody on this machine: chmod o-r"),
        );
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
    Ok(bytes)
}

/// A device and a pipe have no secret that stays.
#[cfg(unix)]
fn is_for_everybody(file: &File) -> bool {
    use std::os::unix::fs::PermissionsExt;

    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_for_everybody(_: &File) -> bool {
    false
}

fn value_of(variable: &str) -> Result<Vec<u8>, String> {
    let value = std::env::var_os(variable).map(OsString::into_encoded_bytes);
    value.ok_or_else(|| match variable.contains(':') {
        true => format!("the environment variable is not set{UNREPEATED}"),
        false => format!("the environment variable {variable} is not set"),
    })
}

fn all_lines(bytes: Vec<u8>) -> Result<Secret, &'static str> {
    if bytes.len() as u64 > MAX_LINES_READ {
        return Err("is longer than 4 MiB");
    }
    String::from_utf8(bytes).map(Secret::from).map_err(|_| "is not UTF-8")
}

/// The line end that editors and `echo` write is no part of a password.
fn one_line(bytes: Vec<u8>) -> Result<Secret, &'static str> {
    if bytes.len() as u64 > MAX_READ {
        return Err("is too long for a password");
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line {
        "" => Err("is empty"),
        line if line.contains('\n') => Err("has more than one line"),
        line => Ok(line.into()),
    }
}

/// For the tests of whoever asks: one file and one variable.
#[cfg(test)]
pub(crate) struct Kept;

#[cfg(test)]
const LINES: &str = "# who\nalice:of the lines\n\nbob:too\n";

#[cfg(test)]
impl Passwords for Kept {
    fn in_file(&self, path: &Path) -> Result<Secret, String> {
        if path == Path::new("pw") { Ok("of the file".into()) } else { Err("no such file".into()) }
    }

    fn in_environment(&self, variable: &str) -> Result<Secret, String> {
        if variable == "PW" { Ok("of the environment".into()) } else { Err(format!("{variable} is not set")) }
    }

    fn lines_in_file(&self, path: &Path) -> Result<Secret, String> {
        if path == Path::new("users") { Ok(LINES.into()) } else { Err("no such file".into()) }
    }

    fn lines_in_environment(&self, variable: &str) -> Result<Secret, String> {
        if variable == "USERS" { Ok(LINES.into()) } else { Err(format!("{variable} is not set")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn a_file_s_one_line_is_the_password() {
        for content in ["hunter2", "hunter2\n", "hunter2\r\n"] {
            assert_eq!(Here.in_file(file(content.as_bytes()).path()).unwrap().expose(), "hunter2");
        }
        assert_eq!(Here.in_file(file(b" a b \n").path()).unwrap().expose(), " a b ");
    }

    #[test]
    fn a_file_with_something_else_is_refused_without_repeating_it() {
        let long = "hunter2".repeat(1000);
        for (content, why) in [
            ("".as_bytes(), "is empty"),
            (b"\n", "is empty"),
            (b"hunter2\nhunter2\n", "has more than one line"),
            (b"hunter2\xff", "is not UTF-8"),
            (long.as_bytes(), "is too long"),
        ] {
            let file = file(content);
            let error = Here.in_file(file.path()).unwrap_err();
            assert!(error.contains(why) && error.contains(file.path().to_str().unwrap()), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(Here.in_file(Path::new("/dev/zero")).unwrap_err().contains("is too long"));
        assert!(Here.in_file(Path::new("/nowhere/pw")).unwrap_err().starts_with("/nowhere/pw: No such file"));
    }

    #[test]
    fn the_environment_is_asked() {
        assert_eq!(Here.in_environment("CARGO_PKG_NAME").unwrap().expose(), "actix-relay");
        for variable in ["ACTIX_RELAY_NO_SUCH_VARIABLE", "A=B", ""] {
            assert!(Here.in_environment(variable).unwrap_err().ends_with("is not set"), "{variable}");
        }
    }

    #[test]
    fn a_name_with_a_colon_that_leads_nowhere_is_not_repeated() {
        for error in [
            Here.in_file(Path::new("alice:hunter2")).unwrap_err(),
            Here.lines_in_file(Path::new("alice:hunter2/x")).unwrap_err(),
            Here.in_environment("alice:hunter2").unwrap_err(),
            Here.lines_in_environment("alice:hunter2").unwrap_err(),
        ] {
            assert!(error.contains("it is not repeated") && !error.contains("hunter2"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_everybody_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt;

        let file = file(b"hunter2");
        for (mode, expected) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_for_everybody(&File::open(file.path()).unwrap()), expected, "{mode:o}");
        }
        assert!(!is_for_everybody(&File::open("/dev/null").unwrap()));
    }

    #[test]
    fn all_lines_of_a_file_are_read() {
        let users = Here.lines_in_file(file(b"a:b\nc:d\n").path()).unwrap();
        assert_eq!(users.expose(), "a:b\nc:d\n");
        assert!(Here.lines_in_file(file(b"hunter2\xff").path()).unwrap_err().ends_with("is not UTF-8"));
        assert!(Here.lines_in_file(Path::new("/dev/zero")).unwrap_err().ends_with("is longer than 4 MiB"));
    }
}

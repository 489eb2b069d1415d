//! Who may run the operator's commands, where the server cannot tell by itself.
//!
//! Before 7.2 commands of modules are in no ACL category: a user without `@admin` and `@dangerous` could cut the link.
//! There the module asks for the caller's rules and applies them as if its commands were in both. A grant of one command
//! beside `-@dangerous` does not help there: the server sees no difference and forgets it.

use super::api::Ctx;
use super::{call, describe, internal};

/// Whether the caller may run `command`, one of the operator's.
pub fn may(ctx: Ctx, command: &str) -> bool {
    if describe::has_categories() || internal::is_own(ctx) {
        return true;
    }
    let Some(user) = user_of(ctx, ctx.client_id()) else { return false };
    // A connection of the server itself.
    if user == "(superuser)" {
        return true;
    }
    rules_of(ctx, &user).is_some_and(|rules| allows(&rules, command))
}

fn user_of(ctx: Ctx, client: u64) -> Option<String> {
    let reply = call::call(ctx, &[b"CLIENT", b"LIST"], "")?;
    let list = String::from_utf8_lossy(reply.bytes()).into_owned();
    let id = format!("id={client} ");
    let line = list.lines().find(|line| line.starts_with(&id))?;
    line.split(' ').find_map(|word| word.strip_prefix("user=")).map(str::to_owned)
}

/// The command rules of a user.
fn rules_of(ctx: Ctx, user: &str) -> Option<String> {
    let reply = call::call(ctx, &[b"ACL", b"GETUSER", user.as_bytes()], "")?;
    (0..reply.len()).step_by(2).find_map(|at| {
        let name = reply.element(at)?;
        let value = reply.element(at + 1)?;
        (name.bytes() == b"commands").then(|| String::from_utf8_lossy(value.bytes()).into_owned())
    })
}

/// Whether the caller may run a command of the server, on servers that cannot be asked. Categories are not looked into:
/// a user who is denied one is taken to lack the command, unless it is granted after that.
pub fn may_all(ctx: Ctx, command: &str) -> bool {
    let Some(user) = user_of(ctx, ctx.client_id()) else { return false };
    user == "(superuser)" || rules_of(ctx, &user).is_some_and(|rules| grants(&rules, command))
}

fn grants(rules: &str, command: &str) -> bool {
    rules.split_whitespace().fold(false, |granted, rule| {
        let (sign, name) = rule.split_at_checked(1).unwrap_or((rule, ""));
        let named = name.eq_ignore_ascii_case(command);
        match sign {
            "+" if named || name.eq_ignore_ascii_case("@all") => true,
            "-" if named || name.starts_with('@') => false,
            _ => granted,
        }
    })
}

/// The last rule that speaks of the command decides.
fn allows(rules: &str, command: &str) -> bool {
    rules.split_whitespace().fold(false, |allowed, rule| {
        let rule = rule.to_ascii_lowercase();
        let (sign, name) = rule.split_at_checked(1).unwrap_or((&rule, ""));
        let speaks = matches!(name, "@all" | "@admin" | "@dangerous") || name.eq_ignore_ascii_case(command);
        match (sign, speaks) {
            ("+", true) => true,
            ("-", true) => false,
            _ => allowed,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{allows, grants};

    #[test]
    fn a_category_that_is_denied_takes_all_away() {
        for (rules, may) in [
            ("+@all", true),
            ("+@all -@dangerous", false),
            ("+@all -@dangerous +GET", true),
            ("-@all +get", true),
            ("-@all +@read", false),
            ("+@all -get", false),
            ("+@all -set", true),
        ] {
            assert_eq!(grants(rules, "get"), may, "{rules}");
        }
    }

    #[test]
    fn the_last_rule_decides() {
        for (rules, may) in [
            ("+@all", true),
            ("+@all -@dangerous", false),
            ("+@all -@admin -@dangerous", false),
            ("+@all -@admin +dr.link", true),
            ("-@all +@read +@write", false),
            ("-@all +dr.link", true),
            ("-@all +dr.cutlink", false),
            ("-@all +@admin", true),
            ("+@all -DR.LINK", false),
            ("", false),
        ] {
            assert_eq!(allows(rules, "DR.LINK"), may, "{rules}");
        }
    }
}

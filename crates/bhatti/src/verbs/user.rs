//! `user create|list|edit|rotate-key|delete`.

use hyper::Method;
use serde_json::json;
use types::Timestamp;

use super::lifecycle::confirmed;
use crate::args::{Limit, Limits, User, UserCreate, UserDelete, UserEdit};
use crate::client::{Client, encode};
use crate::failure::{Failure, Result};
use crate::{output, table, terminal};

pub async fn user(client: &Client, json: bool, asked: User) -> Result<u8> {
    match asked {
        User::Create(asked) => create(client, json, asked).await,
        User::List => list(client, json).await,
        User::Edit(asked) => edit(client, json, asked).await,
        User::RotateKey(asked) => {
            let path = format!("{}/rotate-key", path(asked.name.as_str()));
            let user = client.ask(Method::POST, &path, None::<&()>).await?;
            Ok(show_key(json, &user))
        }
        User::Delete(asked) => delete(client, json, asked).await,
    }
}

fn path(name: &str) -> String {
    format!("/users/{}", encode(name))
}

async fn create(client: &Client, json: bool, asked: UserCreate) -> Result<u8> {
    let most = |limit: Option<Limit>| limit.and_then(|limit| limit.0);
    let Limits { max_sandboxes, max_memory, max_cpus, max_disk, max_volumes, max_snapshots, max_images } =
        asked.limits;
    let request = api::UserCreateRequest {
        name: asked.name.into(),
        max_sandboxes: most(max_sandboxes),
        max_memory_mb: most(max_memory),
        max_cpus: most(max_cpus),
        max_disk_mb: most(max_disk),
        max_volumes: most(max_volumes),
        max_snapshots: most(max_snapshots),
        max_images: most(max_images),
    };
    let user = client.ask(Method::POST, "/users", Some(&request)).await?;
    Ok(show_key(json, &user))
}

/// The key alone on stdout, so that it can be put where it is wanted without being seen.
fn show_key(json: bool, user: &api::UserWithKey) -> u8 {
    if json {
        output::document(user);
    } else {
        eprintln!("the key of {}, which is not shown again:", user.user.name);
        output::line(&user.key);
    }
    0
}

async fn edit(client: &Client, json: bool, asked: UserEdit) -> Result<u8> {
    let most = |limit: Option<Limit>| limit.map(|limit| limit.0);
    let Limits { max_sandboxes, max_memory, max_cpus, max_disk, max_volumes, max_snapshots, max_images } =
        asked.limits;
    let request = api::UserEditRequest {
        max_sandboxes: most(max_sandboxes),
        max_memory_mb: most(max_memory),
        max_cpus: most(max_cpus),
        max_disk_mb: most(max_disk),
        max_volumes: most(max_volumes),
        max_snapshots: most(max_snapshots),
        max_images: most(max_images),
    };
    let user: api::User = client.ask(Method::PATCH, &path(asked.name.as_str()), Some(&request)).await?;
    if json {
        output::document(&user);
    } else {
        show(vec![user]);
    }
    Ok(0)
}

async fn list(client: &Client, json: bool) -> Result<u8> {
    let users: Vec<api::User> = client.get("/users").await?;
    if json {
        output::document(&users);
    } else {
        show(users);
    }
    Ok(0)
}

fn show(users: Vec<api::User>) {
    let now = Timestamp::now();
    let of =
        |used: u64, most: Option<u64>| most.map_or_else(|| used.to_string(), |most| format!("{used}/{most}"));
    let rows: Vec<_> = users
        .into_iter()
        .map(|user| {
            let used = user.used;
            vec![
                user.name,
                of(used.sandboxes, user.max_sandboxes),
                of(used.memory_mb, user.max_memory_mb),
                of(used.cpus, user.max_cpus),
                user.max_disk_mb.map_or_else(|| "-".to_owned(), |most| most.to_string()),
                of(used.volumes, user.max_volumes),
                of(used.snapshots, user.max_snapshots),
                of(used.images, user.max_images),
                table::age(&user.created_at, now),
                table::age(&user.key_created_at, now),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "SANDBOXES",
        "MEMORY MB",
        "CPUS",
        "MAX DISK MB",
        "VOLUMES",
        "SNAPSHOTS",
        "IMAGES",
        "AGE",
        "KEY AGE",
    ];
    output::bytes(table::render(&header, &rows).as_bytes());
}

async fn delete(client: &Client, json: bool, asked: UserDelete) -> Result<u8> {
    let UserDelete { name, purge, yes } = asked;
    let with = if purge { " with everything that they have" } else { "" };
    if !yes && terminal::can_ask() && !confirmed(&format!("delete the user {name}{with}?"))? {
        return Err(Failure::new("declined", "nothing was deleted"));
    }
    client.delete(&format!("{}?purge={purge}", path(name.as_str()))).await?;
    if json {
        output::document(&json!({ "deleted": name }));
    } else {
        output::line(format!("the user {name} is deleted"));
    }
    Ok(0)
}

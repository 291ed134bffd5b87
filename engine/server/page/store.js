// What this browser keeps: texts and options in localStorage, pictures in IndexedDB.

import { isText } from "./parts.js";

const CHAT = "sightline.chat";
const OPTIONS = "sightline.options";
const PICTURES = "pictures";
const PICTURE_BYTES = 64 * 2 ** 20;

const read = (name) => {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
};

const write = (name, value) => {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
};

export const loadOptions = () => read(OPTIONS) ?? {};
export const saveOptions = (options) => write(OPTIONS, options);
export const loadTurns = () => [read(CHAT) ?? []].flat().map(inParts).filter((turn) => Array.isArray(turn?.parts));
export const isChat = (storageEvent) => storageEvent.key === CHAT;

/** False if there was no room. */
export function saveTurns(turns) {
  return write(CHAT, turns.map(({ parts, answer }) => ({
    parts: parts.map((part) => isText(part) ? part : { id: part.id, name: part.name, size: part.size }),
    answer,
  })));
}

/** A turn as it is; one that was kept before questions had parts has its pictures first. */
function inParts(turn) {
  if (!Array.isArray(turn?.pictures)) return turn;
  const { text, pictures, answer } = turn;
  return { parts: text ? [...pictures, { text }] : pictures, answer };
}

/** Makes these the pictures that are kept, the newest first if not all can be. True if all are. */
export async function keepPictures(pictures) {
  try {
    const database = await open();
    const transaction = database.transaction(PICTURES, "readwrite");
    const store = transaction.objectStore(PICTURES);
    const stored = new Set(await result(store.getAllKeys()));
    const kept = new Set();
    let room = PICTURE_BYTES;
    for (const { id, size } of pictures.toReversed()) {
      room -= size;
      if (room < 0) break;
      kept.add(id);
    }
    for (const id of stored) if (!kept.has(id)) store.delete(id);
    for (const { id, blob } of pictures) if (blob && kept.has(id) && !stored.has(id)) store.put(blob, id);
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    return pictures.every(({ id }) => kept.has(id));
  } catch {
    return false;
  }
}

/** Gives the pictures that lack their `blob` the one that was kept, if it was. */
export async function fetchPictures(pictures) {
  try {
    const store = (await open()).transaction(PICTURES).objectStore(PICTURES);
    await Promise.all(pictures.filter(({ blob }) => !blob).map(async (picture) => {
      picture.blob = await result(store.get(picture.id));
    }));
  } catch {
    // They stay without; the page shows that.
  }
}

let database;

function open() {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open("sightline", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(PICTURES);
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return database;
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

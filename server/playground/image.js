// Turns a file into a picture that the server accepts: unchanged, or scaled down to its limits.

/** @typedef {{images_per_prompt: number, max_image_pixels: number, max_body_bytes: number}} Limits */

import { Failure } from "./request.js";

// Formats the server reads; everything else that the browser can show is converted to PNG.
const TAKEN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"];
const ROOM_FOR_TEXT = 100_000; // bytes of the body reserved for the conversation

/**
 * Reads a picture; as many as a prompt may have fit the limits together.
 *
 * @param {File} file
 * @param {Limits} limits
 * @returns {Promise<import("./request.js").Picture>}
 */
export async function readPicture(file, limits) {
  const share = 1 / limits.images_per_prompt;
  const most = { pixels: limits.max_image_pixels * share, bytes: bytesInBody(limits.max_body_bytes) * share };
  const image = await decode(file);
  if (!image) {
    // Few browsers show TIFF, so leave it to the server.
    if (file.type !== "image/tiff") throw new Failure(`This browser cannot read ${file.name} as a picture.`);
    return picture(file, file.name, 0, 0, size(file.size));
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  const small = width * height <= most.pixels && file.size <= most.bytes;
  if (small && TAKEN.includes(file.type)) {
    return picture(file, file.name, width, height, `${width} × ${height}, ${size(file.size)}`);
  }
  const [blob, w, h] = await redraw(image, file.type === "image/jpeg", most);
  const scaled = w === width ? "" : `, scaled down from ${width} × ${height} to the server's limit`;
  return picture(blob, file.name, w, h, `${w} × ${h}, ${size(blob.size)}${scaled}`);
}

/** How many bytes of a picture fit into a body: base64 encodes three bytes as four. */
const bytesInBody = (bytes) => Math.max(0, bytes - Math.min(ROOM_FOR_TEXT, bytes / 4)) * 0.75;

async function picture(blob, name, width, height, note) {
  return { url: await dataUrl(blob), name, width, height, note };
}

/** Decodes the image and applies its EXIF orientation; returns null if the browser cannot read it. */
async function decode(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Redraws the image within the limits; as PNG if that fits, to keep sharp edges. */
async function redraw(image, isPhoto, most) {
  const pixels = image.naturalWidth * image.naturalHeight;
  let scale = Math.min(1, Math.sqrt(most.pixels / pixels));
  for (let types = isPhoto ? ["image/jpeg"] : ["image/png", "image/jpeg"]; ; scale *= 0.8) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(image.naturalWidth * scale));
    canvas.height = Math.max(1, Math.floor(image.naturalHeight * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    for (const type of types) {
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
      if (blob && (blob.size <= most.bytes || canvas.width * canvas.height === 1)) {
        return [blob, canvas.width, canvas.height];
      }
    }
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure("Failed to read the picture."));
    reader.readAsDataURL(blob);
  });
}

/** Formats a number of bytes. */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

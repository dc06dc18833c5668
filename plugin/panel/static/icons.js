// Line icons, 20 by 20, drawn for this page.

import { svg } from "./vendor/lit-html/lit-html.js";

const icon = (body) =>
  svg`<svg viewBox="0 0 20 20" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.6"
    stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">${body}</svg>`;

export const mark = svg`<svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true">
  <rect width="32" height="32" rx="8" class="mark-ground"></rect>
  <ellipse cx="16" cy="12.800" rx="5.400" ry="6.400" class="mark-figure"></ellipse>
  <path d="M5.500 27c.9-4.300 4.300-6.300 7.200-6.900 1 .8 2.100 1.200 3.300 1.200s2.300-.4 3.300-1.200c2.900.6 6.300 2.600 7.200 6.900z" class="mark-figure half"></path>
</svg>`;
export const broadcast = icon(svg`<circle cx="10" cy="10" r="2"></circle><path d="M6 14a5.600 5.600 0 0 1 0-8M14 6a5.600 5.600 0 0 1 0 8M3.500 16.500a9.200 9.200 0 0 1 0-13M16.500 3.500a9.200 9.200 0 0 1 0 13"></path>`);
export const stop = icon(svg`<rect x="5" y="5" width="10" height="10" rx="1.500"></rect>`);
export const shield = icon(svg`<path d="M10 2.500 4 5v4.600c0 3.700 2.500 6.500 6 7.900 3.500-1.400 6-4.200 6-7.900V5z"></path>`);
export const pause = icon(svg`<path d="M7 4.500v11M13 4.500v11"></path>`);
export const face = icon(svg`<circle cx="10" cy="10" r="7.200"></circle><path d="M7.300 12.200h5.400M7.400 8.200v.1M12.600 8.200v.1"></path>`);
export const camera = icon(svg`<rect x="2.500" y="5.500" width="10.500" height="9" rx="2"></rect><path d="m13 9 4.500-2.500v7L13 11"></path>`);
export const plus = icon(svg`<path d="M10 4v12M4 10h12"></path>`);
export const more = icon(svg`<path d="M5 10h.01M10 10h.01M15 10h.01"></path>`);
export const sun = icon(svg`<circle cx="10" cy="10" r="3.200"></circle><path d="M10 2.500v1.800M10 15.700v1.800M2.500 10h1.800M15.700 10h1.800M4.700 4.700 6 6M14 14l1.300 1.300M15.300 4.700 14 6M6 14l-1.300 1.300"></path>`);
export const moon = icon(svg`<path d="M16.500 11.800A7 7 0 1 1 8.200 3.500a5.600 5.600 0 0 0 8.300 8.300z"></path>`);
export const help = icon(svg`<circle cx="10" cy="10" r="7.500"></circle><path d="M7.800 7.800a2.300 2.300 0 1 1 3.300 2.100c-.8.400-1.100.8-1.100 1.600M10 14v.1"></path>`);
export const good = icon(svg`<path d="m4.500 10.500 3.500 3.500 7.500-8"></path>`);
export const caution = icon(svg`<path d="M10 3 2.500 16.500h15zM10 8.500v3.500M10 14.300v.1"></path>`);
export const bad = icon(svg`<path d="m5.500 5.500 9 9M14.500 5.500l-9 9"></path>`);
export const drop = icon(svg`<path d="M10 13V3.500M6.500 7 10 3.500 13.500 7M3.500 12.500v3a1 1 0 0 0 1 1h11a1 1 0 0 0 1-1v-3"></path>`);

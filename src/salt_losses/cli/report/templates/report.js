"use strict";
// The slider shows the sheet of one iteration; without scripts the last one is there.
for (const viewer of document.querySelectorAll(".sweeps")) {
  const slider = viewer.querySelector("input[type=range]");
  if (!slider) continue;
  const sheets = [...viewer.querySelectorAll(".sheet")];
  const output = viewer.querySelector("output");
  const show = () => {
    sheets.forEach((sheet, i) => sheet.classList.toggle("shown", i === slider.valueAsNumber));
    output.value = sheets[slider.valueAsNumber].dataset.iteration;
  };
  slider.addEventListener("input", show);
  show(); // a browser may keep the slider where it was
}

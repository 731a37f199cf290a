"use strict";
// Moves the plots' cursors with the video, and the video to where a plot is clicked.
for (const article of document.querySelectorAll("article")) {
  const video = article.querySelector("video");
  const duration = Number(article.dataset.duration);
  const length = Number(article.dataset.length);
  const cursors = article.querySelectorAll(".cursor");
  const clock = article.querySelector(".clock");
  const move = (seconds) => {
    const frame = Math.min(length - 1, Math.floor((seconds / duration) * length + 1e-3));
    const x = length > 1 ? (frame / (length - 1)) * 600 : 300;
    for (const cursor of cursors) {
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
    clock.textContent = `, at ${seconds.toFixed(2)} s (frame ${frame})`;
  };
  if (video) {
    const follow = () => {
      move(video.currentTime);
      if (!video.paused) requestAnimationFrame(follow);
    };
    video.addEventListener("play", follow);
    video.addEventListener("seeked", follow);
  }
  for (const plot of article.querySelectorAll(".plot")) {
    plot.addEventListener("click", (event) => {
      const box = plot.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const seconds = (Math.round(share * (length - 1)) + 0.5) / length * duration;
      if (video) video.currentTime = seconds;
      move(seconds);
    });
  }
}

// The page in a frame inside a notebook's cell. What it shows now is the widget's `state`.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.setAttribute("title", "probe viewer");
  frame.style.cssText = `width:100%;height:${model.get("height")}px;border:0`;
  frame.srcdoc = model.get("page");
  const tell = () => frame.contentWindow.postMessage({ probe: model.get("state") }, "*");
  const listen = ({ source, data }) => {
    if (source !== frame.contentWindow || typeof data?.probe !== "string") return;
    model.set("state", data.probe);
    model.save_changes();
  };
  window.addEventListener("message", listen);
  frame.addEventListener("load", () => setTimeout(tell, 500));
  model.on("change:state", tell);
  el.append(frame);
  return () => window.removeEventListener("message", listen);
}

export default { render };

/** What may wait for a reader: more than this closes the connection, with code 4000. */
export const QUEUE_MESSAGES: number;
export const QUEUE_BYTES: number;
/** `send()` resolves when no more than this is still to be written. */
export const SEND_BYTES: number;

/** Why there is no connection, or none any more. The first eight are plumberd's refusals. */
export type Word =
  | "denied"
  | "unauthenticated"
  | "unknown-service"
  | "unreachable"
  | "timeout"
  | "bad-request"
  | "busy"
  | "not-possible"
  /** The daemon could not be asked, and a browser does not say why a WebSocket did not open. */
  | "hidden"
  /** It was open, and ended otherwise than in order. */
  | "lost"
  /** More messages came than may wait for their reader. */
  | "slow";

export class PlumbError extends Error {
  constructor(word: Word, reason: string, code?: number);
  readonly name: "PlumbError";
  readonly word: Word;
  /** A sentence for people. */
  readonly reason: string;
  /** The close code, where it was open. */
  readonly code?: number;
}

export interface End {
  code: number;
  reason: string;
  /** Both sides have said that it ends. */
  clean: boolean;
}

export interface BackOff {
  /** Before the second try; doubled for each one after it. Half of it is chance. Default: 0.5. */
  firstSeconds?: number;
  /** Default: 30. */
  mostSeconds?: number;
  /** How many failures in a row are too many. Default: none are. */
  tries?: number;
  /** Connect again after an end in order (code 1000) too: it is what a service's own end looks like. Default: false. */
  afterEnd?: boolean;
}

export type State = "connecting" | "open" | "waiting" | "closed";

/** `waiting` has seconds and error, `closed` has code, reason, clean and error. */
export interface Detail extends Partial<End> {
  seconds?: number;
  error?: PlumbError | null;
}

/** A WebSocket's constructor: the browser's, Node's, or that of the package `ws`. */
export type Sockets = new (url: URL, protocols: string[]) => unknown;

export interface Options<Text extends boolean = boolean> {
  /** The bearer token. It travels in the list of subprotocols, and as a header where a refusal is asked about. */
  token?: string;
  /** `ipc`: a WebSocket message is a message of the service. `raw`: bytes. Default: `ipc`. */
  protocol?: "ipc" | "raw";
  /** Messages are given as strings, decoded from UTF-8. Default: false. */
  text?: Text;
  /** Ends the connection, or the try. */
  signal?: AbortSignal;
  /** Connect again when the connection is lost, as long as that may help. Default: false. */
  reconnect?: boolean | BackOff;
  onState?: (state: State, detail: Detail) => void;
  /** Default: the global one. */
  WebSocket?: Sockets;
  /** What asks about refusals. Default: the global one. */
  fetch?: typeof globalThis.fetch;
}

export interface Connection<Message = Uint8Array | string> extends AsyncIterableIterator<Message> {
  readonly state: State;
  /** Resolves at the last end, whatever it was; never rejects. */
  readonly closed: Promise<End>;
  /** Resolves when at most `SEND_BYTES` wait to be written; rejects where the connection has ended. */
  send(data: string | ArrayBuffer | ArrayBufferView): Promise<void>;
  /** The next message. After an end that was not in order it rejects once, with a `PlumbError`. */
  next(): Promise<IteratorResult<Message, undefined>>;
  /** `code` is 1000, or 3000 to 4999. */
  close(code?: number, reason?: string): Promise<End>;
}

/**
 * Connect to a service.
 *
 * Rejects with a `PlumbError`, or with the signal's reason. With `reconnect` it rejects only where
 * another try cannot help, or where there were too many.
 */
export function connect(url: string | URL, options: Options<true> & { text: true }): Promise<Connection<string>>;
export function connect(url: string | URL, options?: Options): Promise<Connection>;
